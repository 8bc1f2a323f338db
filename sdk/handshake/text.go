package handshake

import "strings"

// texts are what crypto/tls says where it has no type, by how it starts. The
// test of the matrix produces them by real handshakes: a new version of Go that
// says something else turns it red.
var texts = []struct {
	start string
	cause Cause
	whose string
}{
	{"tls: client didn't provide a certificate", NoCertificate, Peer},
	{"tls: failed to parse client certificate", Malformed, Peer},
	{"tls: failed to parse certificate from server", Malformed, Peer},
	{"tls: client sent certificate containing RSA key larger than", TooComplex, Peer},
	{"tls: server sent certificate containing RSA key larger than", TooComplex, Peer},
	{"tls: client certificate contains an unsupported public key", WeakKey, Peer},
	{"tls: server's certificate contains an unsupported type of public key", WeakKey, Peer},
	{"tls: invalid signature by the client certificate", BadProof, Peer},
	{"tls: invalid signature by the server certificate", BadProof, Peer},
	{"tls: client certificate used with invalid signature algorithm", SignatureAlgorithm, Peer},
	{"tls: certificate used with invalid signature algorithm", SignatureAlgorithm, Peer},

	{"tls: client offered only unsupported versions", ProtocolVersion, ""},
	{"tls: server selected unsupported protocol version", ProtocolVersion, ""},
	{"tls: client using inappropriate protocol fallback", ProtocolVersion, ""},
	{"tls: downgrade attempt detected", ProtocolVersion, ""},
	{"tls: no cipher suite supported by both client and server", CipherSuite, ""},
	{"tls: server chose an unconfigured cipher suite", CipherSuite, ""},
	{"tls: no key exchanges supported by both client and server", KeyExchange, ""},
	{"tls: no supported elliptic curves offered", KeyExchange, ""},
	{"tls: server selected unsupported curve", KeyExchange, ""},
	{"tls: server selected unsupported group", KeyExchange, ""},
	{"tls: peer doesn't support any of the certificate's signature algorithms", SignatureAlgorithm, Own},
	{"tls: peer doesn't support the certificate custom signature algorithms", SignatureAlgorithm, Own},
	{"tls: client requested unsupported application protocols", ALPN, ""},
	{"tls: client did not request an application protocol", ALPN, ""},
	{"tls: server did not select an ALPN protocol", ALPN, ""},
	{"tls: server advertised unrequested ALPN extension", ALPN, ""},
	{"tls: server selected unadvertised ALPN protocol", ALPN, ""},
	{"tls: no certificates configured", UnknownServerName, Own},

	{"tls: either ServerName or InsecureSkipVerify must be specified", Misconfigured, ""},
	{"tls: neither Certificates, GetCertificate, nor GetConfigForClient", Misconfigured, ""},
	{"tls: invalid NextProtos value", Misconfigured, ""},
	{"tls: NextProtos values too large", Misconfigured, ""},
	{"tls: no supported versions satisfy MinVersion and MaxVersion", Misconfigured, ""},
	{"tls: no supported elliptic curves for ECDHE", Misconfigured, ""},
	{"tls: CurvePreferences includes unsupported curve", Misconfigured, ""},
	{"tls: MinVersion must be", Misconfigured, ""},
	{"tls: MaxVersion must be", Misconfigured, ""},
	{"tls: EncryptedClientHelloConfigList contains", Misconfigured, ""},
	{"tls: unsupported certificate", Misconfigured, Own},
	{"tls: unsupported signing key type", Misconfigured, Own},
	{"tls: unsupported decryption key type", Misconfigured, Own},
	{"tls: certificate private key", Misconfigured, Own},
	{"tls: client certificate private key", Misconfigured, Own},
	{"tls: certificate RSA key size too small", Misconfigured, Own},
	{"tls: failed to sign", Misconfigured, Own},

	{"tls: internal error", Other, ""},
	{"tls: short read from Rand", Other, ""},
	{"tls: failed to write to key log", Other, ""},
	{"tls: ", Protocol, ""},
}

// byText is the last resort.
func byText(text string) (cause Cause, whose string) {
	for _, t := range texts {
		if strings.HasPrefix(text, t.start) {
			return t.cause, t.whose
		}
	}
	return Other, ""
}
