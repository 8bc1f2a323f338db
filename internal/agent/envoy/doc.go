// Package envoy runs one Envoy beside a program and knows what happens in
// it: finds and checks the binary, writes its bootstrap, starts, watches,
// drains and stops the process, reads its access logs into a table of who is
// on each live connection, ends such connections, and reads its statistics.
// What the Envoy is configured to do is the compiler's matter.
package envoy
