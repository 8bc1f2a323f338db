// Package linktest holds the test that says what each package of the SDK may
// link. It has no code.
package linktest
