package aes256gcm

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// obeys is tried once: nothing changes it while the process runs.
var obeys = sync.OnceValue(func() bool {
	const chacha, aes128, aes256 = tls.TLS_CHACHA20_POLY1305_SHA256, tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384
	return slices.Equal(offered(), []uint16{aes256}) &&
		accepted(aes256) && accepted(chacha, aes128, aes256) &&
		!accepted(chacha) && !accepted(aes128) && !accepted(chacha, aes128)
})

// patience bounds a probe; it takes microseconds.
const patience = 5 * time.Second

var errEnough = errors.New("seen enough")

// offered is what a client of this process says it can.
func offered() (suites []uint16) {
	converse(func(conn net.Conn) {
		tls.Server(conn, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			suites = hello.CipherSuites
			return nil, errEnough
		}}).HandshakeContext(context.Background())
	}, func(conn net.Conn) {
		tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}).HandshakeContext(context.Background())
	})
	return suites
}

// accepted tells whether a server of this process chooses one of the suites
// of a client. A server asks for its certificate after that choice.
func accepted(suites ...uint16) (chosen bool) {
	converse(func(conn net.Conn) {
		tls.Server(conn, &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			chosen = true
			return nil, errEnough
		}}).HandshakeContext(context.Background())
	}, func(conn net.Conn) {
		conn.Write(clientHello(suites))
		conn.Read(make([]byte, 64)) // the alert
	})
	return chosen
}

// converse lets two ends talk until both are done. Deadlines and errors end
// it; what was seen is what counts.
func converse(server, client func(net.Conn)) {
	a, b := net.Pipe()
	limit := time.Now().Add(patience)
	a.SetDeadline(limit)
	b.SetDeadline(limit)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer b.Close()
		client(b)
	}()
	server(a)
	a.Close()
	<-done
}

// clientHello is a record with the hello of a client that speaks TLS 1.3 with
// P-256 and these suites (RFC 8446 4.1.2).
func clientHello(suites []uint16) []byte {
	const p256, ecdsaP256 = 0x0017, 0x0403
	// The base point is as good a key share as any: nothing is encrypted.
	point := []byte("\x04" +
		"\x6b\x17\xd1\xf2\xe1\x2c\x42\x47\xf8\xbc\xe6\xe5\x63\xa4\x40\xf2\x77\x03\x7d\x81\x2d\xeb\x33\xa0\xf4\xa1\x39\x45\xd8\x98\xc2\x96" +
		"\x4f\xe3\x42\xe2\xfe\x1a\x7f\x9b\x8e\xe7\xeb\x4a\x7c\x0f\x9e\x16\x2b\xce\x33\x57\x6b\x31\x5e\xce\xcb\xb6\x40\x68\x37\xbf\x51\xf5")
	var b cryptobyte.Builder
	extension := func(b *cryptobyte.Builder, number uint16, f cryptobyte.BuilderContinuation) {
		b.AddUint16(number)
		b.AddUint16LengthPrefixed(f)
	}
	list16 := func(values ...uint16) cryptobyte.BuilderContinuation {
		return func(b *cryptobyte.Builder) {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				for _, v := range values {
					b.AddUint16(v)
				}
			})
		}
	}
	b.AddBytes([]byte{22, 3, 1}) // handshake record
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(1) // client_hello
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint16(tls.VersionTLS12) // legacy_version
			b.AddBytes(make([]byte, 32))  // random
			b.AddUint8(0)                 // no legacy_session_id
			list16(suites...)(b)
			b.AddBytes([]byte{1, 0}) // no compression
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				extension(b, 43, func(b *cryptobyte.Builder) { // supported_versions
					b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(tls.VersionTLS13) })
				})
				extension(b, 10, list16(p256))                 // supported_groups
				extension(b, 13, list16(ecdsaP256))            // signature_algorithms
				extension(b, 51, func(b *cryptobyte.Builder) { // key_share
					b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
						b.AddUint16(p256)
						b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(point) })
					})
				})
			})
		})
	})
	return b.BytesOrPanic()
}
