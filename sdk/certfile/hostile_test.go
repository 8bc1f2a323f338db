package certfile

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"
)

// Files that lost their line ends on the way, and other accidents: what is
// said of them has nothing of the key.
func TestA22ErrorsOfBrokenKeyFilesHaveNothingOfTheKey(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	sec1, _ := x509.MarshalECPrivateKey(ec)
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(ed)
	for kind, der := range map[string][]byte{"EC PRIVATE KEY": sec1, "PRIVATE KEY": pkcs8} {
		text := string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
		body := base64.StdEncoding.EncodeToString(der)
		for name, broken := range map[string]string{
			"line ends are gone":             strings.ReplaceAll(text, "\n", ""),
			"line ends are spaces":           strings.ReplaceAll(text, "\n", " "),
			"line ends are written out":      strings.ReplaceAll(text, "\n", `\n`),
			"line ends are carriage returns": strings.ReplaceAll(text, "\n", "\r"),
			"the end is in the last line":    strings.Replace(text, "\n-----END", "-----END", 1),
			"the first line is joined":       strings.Replace(text, "\n", "", 1),
			"the end is joined":              "-----BEGIN " + kind + "-----\n-----END " + kind + body + "-----\n",
			"no dashes":                      "-----BEGIN " + body + "\n",
			"the key as its label":           "-----BEGIN " + body + "-----\n" + body + "\n-----END " + body + "-----\n",
			"half a key":                     text[:len(text)/2],
			"base64 that is none":            strings.Replace(text, body[10:11], "*", 1),
			"bytes that are no key":          strings.Replace(text, body[:4], "AAAA", 1),
			"twice":                          text + text,
		} {
			_, err := privateKey([]byte(broken))
			if err == nil {
				t.Errorf("%s (%s): it was read", name, kind)
				continue
			}
			for n := 0; n+8 <= len(body); n++ {
				if strings.Contains(err.Error(), body[n:n+8]) {
					t.Errorf("%s (%s): %v", name, kind, err)
					break
				}
			}
		}
	}
}
