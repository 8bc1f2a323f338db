package renewal

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestEveryFieldOfCertManagersAPIIsReadAndWritten: testdata/full.yaml has each
// field of cert-manager.io/v1 Certificate.
func TestEveryFieldOfCertManagersAPIIsReadAndWritten(t *testing.T) {
	raw, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, raw) {
		t.Errorf("written again it differs:\n%s", again)
	}
	asJSON, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	fromJSON, err := Parse(asJSON)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, fromJSON) {
		t.Errorf("through JSON it differs: %+v", fromJSON)
	}
	plain := new(Certificate)
	if err := json.Unmarshal(asJSON, plain); err != nil || !reflect.DeepEqual(c, plain) {
		t.Errorf("encoding/json reads it differently (%v): %+v", err, plain)
	}
	if clone := c.Clone(); !reflect.DeepEqual(c, clone) {
		t.Errorf("a clone differs: %+v", clone)
	}
	filled(t, reflect.ValueOf(*c), "Certificate")
}

// filled fails for every field of the structs that the document left empty:
// what is added to the API must be added to the document.
func filled(t *testing.T, v reflect.Value, path string) {
	empty := map[string]bool{ // not in a document that is declared, or on the other keystore
		"Certificate.Metadata.GenerateName": true, "Certificate.Metadata.SelfLink": true, "Certificate.Metadata.DeletionTimestamp": true,
		"Certificate.Metadata.DeletionGrace": true, "Certificate.Metadata.Finalizers": true, "Certificate.Metadata.ManagedFields": true,
		"Certificate.Spec.Keystores.JKS.Profile": true, "Certificate.Spec.Keystores.JKS.Password": true,
		"Certificate.Spec.Keystores.PKCS12.Alias": true, "Certificate.Spec.Keystores.PKCS12.PasswordSecretRef": true,
		"Certificate.Spec.NameConstraints.Excluded.IPRanges": true, "Certificate.Spec.NameConstraints.Excluded.EmailAddresses": true,
		"Certificate.Spec.NameConstraints.Excluded.URIDomains": true,
	}
	if empty[path] {
		return
	}
	if v.IsZero() {
		t.Errorf("%s is not in the document", path)
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && v.Elem().Kind() == reflect.Struct {
			filled(t, v.Elem(), path)
		}
	case reflect.Slice:
		for i := range v.Len() {
			if v.Index(i).Kind() == reflect.Struct {
				filled(t, v.Index(i), path)
			}
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[Time]() || v.Type() == reflect.TypeFor[Duration]() {
			return
		}
		for i := range v.NumField() {
			filled(t, v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	}
}

func TestMistakesAreNamedWithTheirLine(t *testing.T) {
	const head = "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: a}\n"
	for _, tt := range []struct{ name, in, want string }{
		{"an unknown field", head + "spec:\n  secretName: a\n  renewBefor: 1h\n", "line 6: spec.renewBefor: there is no such field"},
		{"a field in the wrong case", head + "spec:\n  dnsnames: [a]\n", "line 5: spec.dnsnames: there is no such field; did you mean dnsNames?"},
		{"a field in the wrong place", head + "secretName: a\n", "line 4: secretName: there is no such field"},
		{"a field given twice", head + "spec:\n  secretName: a\n  isCA: true\n  secretName: b\n", "line 7: spec.secretName: given twice; first in line 5"},
		{"a number where a string belongs", head + "spec:\n  secretName: 5\n", "line 5: spec.secretName: want a string, not the int 5; put it in quotes"},
		{"a string where a list belongs", head + "spec:\n  dnsNames: a\n", "line 5: spec.dnsNames: want a list, not the str a"},
		{"a list where an object belongs", head + "spec: []\n", "line 4: spec: want an object, not a list"},
		{"a string where a number belongs", head + "spec:\n  renewBeforePercentage: '20'\n", "line 5: spec.renewBeforePercentage: want a whole number, not the str 20"},
		{"a number that is too large", head + "spec:\n  renewBeforePercentage: 99999999999\n", "line 5: spec.renewBeforePercentage: 99999999999 is not a whole number of 32 bits"},
		{"days, which durations do not have", head + "spec:\n  duration: 90d\n", "line 5: spec.duration: \"90d\" is no duration; write it in h, m and s like \"2160h\" (90 days)"},
		{"a duration without a unit", head + "spec:\n  duration: 90\n", "line 5: spec.duration: want a duration, not the int 90; put it in quotes"},
		{"a time that is none", head + "status:\n  notAfter: tomorrow\n", "line 5: status.notAfter: \"tomorrow\" is no time"},
		{"an anchor", head + "spec: &s\n  secretName: a\n", "line 4: spec: anchors and aliases are not read"},
		{"an alias bomb", "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "line 1: a: there is no such field; line 2: b: there is no such field; line 3: c: there is no such field"},
		{"a merge key", head + "spec:\n  <<: {secretName: a}\n", "line 5: spec: the name of a field is a plain string"},
		{"another kind", "apiVersion: cert-manager.io/v1\nkind: Issuer\nmetadata: {name: a}\n", "line 1: this is a cert-manager.io/v1 Issuer; want kind Certificate"},
		{"another version", "apiVersion: cert-manager.io/v2\nkind: Certificate\n", "line 1: this is a cert-manager.io/v2 Certificate"},
		{"two mistakes at once", head + "spec:\n  x: 1\n  y: 2\n", "line 5: spec.x: there is no such field; line 6: spec.y: there is no such field"},
		{"in the second document", head + "---\n" + head + "spec:\n  x: 1\n", "line 9: spec.x: there is no such field"},
		{"no YAML", "a: [", "this is not YAML: "},
		{"JSON with an unknown field", "{\n\t\"apiVersion\": \"cert-manager.io/v1\",\n\t\"kind\": \"Certificate\",\n\t\"spec\": {\n\t\t\"secret\": \"a\"}}", "line 5: spec.secret: there is no such field"},
		{"JSON with a field given twice", "{\"kind\": \"Certificate\",\n\"kind\": \"Certificate\"}", "line 2: kind: given twice; first in line 1"},
		{"JSON that ends early", "{\n\"kind\": \"Certificate\",\n", "this is not JSON: line 2: unexpected EOF"},
		{"nested without end", strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), "nested deeper than 32"},
		{"nothing", "", "there are 0 certificates; want one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse([]byte(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%+v, %v; want %q", c, err, tt.want)
			}
		})
	}
}

func TestWhatIsReadAlike(t *testing.T) {
	want := certificate("a")
	want.APIVersion, want.Kind = APIVersion, Kind
	want.Spec.Duration = NewDuration(36 * time.Hour)
	for _, tt := range []struct{ name, in string }{
		{"block style", "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata:\n  name: a\n  namespace: default\nspec:\n  secretName: a-tls\n  duration: 36h\n  dnsNames: [a.example.org]\n  issuerRef:\n    name: ca\n  privateKey:\n    algorithm: ECDSA\n"},
		{"flow style", "{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {name: a, namespace: default}, spec: {secretName: a-tls, duration: 36h0m0s, dnsNames: [a.example.org], issuerRef: {name: ca}, privateKey: {algorithm: ECDSA}}}"},
		{"JSON with tabs", "{\n\t\"apiVersion\": \"cert-manager.io/v1\", \"kind\": \"Certificate\", \"metadata\": {\"name\": \"a\", \"namespace\": \"default\"},\n\t\"spec\": {\"secretName\": \"a-tls\", \"duration\": \"36h\", \"dnsNames\": [\"a.example.org\"], \"issuerRef\": {\"name\": \"ca\"}, \"privateKey\": {\"algorithm\": \"ECDSA\"}}}"},
		{"nulls, and comments between documents", "# nothing\n---\napiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: a, namespace: default, creationTimestamp: null}\nspec: {secretName: a-tls, duration: 36h, dnsNames: [a.example.org], issuerRef: {name: ca}, privateKey: {algorithm: ECDSA}, usages: null}\nstatus: {}\n---\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(c, want) {
				t.Errorf("got %+v\nwant %+v", c, want)
			}
		})
	}
}

// FuzzParse: nothing panics, and what is read is written and read again as
// the same.
func FuzzParse(f *testing.F) {
	raw, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte("{\"apiVersion\": \"cert-manager.io/v1\", \"kind\": \"Certificate\", \"spec\": {\"duration\": \"1h\"}, \"status\": {\"notAfter\": null}}"))
	f.Add([]byte("apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {managedFields: [{a: 1.5, b: [null, true, 'x']}]}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		began := time.Now()
		list, err := ParseAll(raw)
		if took := time.Since(began); took > 20*time.Second {
			t.Fatalf("%d bytes took %s", len(raw), took)
		}
		if err != nil {
			var p *ParseError
			if errors.As(err, &p) {
				for _, m := range p.Mistakes {
					if m.Line < 1 {
						t.Fatalf("a mistake without a line: %+v", m)
					}
				}
			}
			return
		}
		for _, c := range list {
			c.Validate() // must not panic
			again, err := c.YAML()
			if err != nil {
				t.Fatal(err)
			}
			back, err := Parse(again)
			if err != nil {
				t.Fatalf("%v in\n%s", err, again)
			}
			if !reflect.DeepEqual(back, c.Clone()) {
				t.Fatalf("it was\n%+v\nand is\n%+v\nin\n%s", c, back, again)
			}
		}
	})
}
