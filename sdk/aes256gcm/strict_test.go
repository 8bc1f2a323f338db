package aes256gcm_test

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

func TestTheStrictProfileIsThereWithThisPackage(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: d.Source("/b"), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain), Profile: mtls.Strict})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialer, err := mtls.NewDialer(mtls.ClientConfig{Source: d.Source("/a"), Authorize: mtls.AuthorizeID(d.ID("/b")), Profile: mtls.Strict})
	if err != nil {
		t.Fatal(err)
	}
	defer dialer.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := dialer.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	<-done
	cs := c.(*tls.Conn).ConnectionState()
	if got := mtls.NegotiatedOf(&cs); got.Suite != "TLS_AES_256_GCM_SHA384" || got.Group != "X25519MLKEM768" {
		t.Errorf("agreed on %s", got)
	}
	c.Close()
}
