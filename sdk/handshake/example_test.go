package handshake_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/legation-io/legation/sdk/handshake"
)

// A server that follows each handshake. sdk/mtls does this for you.
func Example() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	go func() { // a client that has the wrong idea
		if c, err := net.Dial("tcp", listener.Addr().String()); err == nil {
			io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		}
	}()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	raw, err := listener.Accept()
	if err != nil {
		panic(err)
	}
	attempt := handshake.Begin(handshake.Server, raw, []handshake.Hook{handshake.LogHook(nil)})
	config := attempt.Config(ctx, &tls.Config{}, func(ctx context.Context, cs tls.ConnectionState) error {
		return nil // who is it? see sdk/chaincheck
	})
	conn := tls.Server(attempt.Conn(), config)
	err = attempt.Run(ctx, conn)

	var failed *handshake.Error
	if errors.As(err, &failed) {
		fmt.Println(failed.Cause, failed.Code())
		fmt.Println(failed.Detail())
		fmt.Println(failed.Link())
		handshake.Linger(raw, 0)
	}
	// Output:
	// not_tls tls_handshake_failed/not_tls
	// the peer does not speak TLS, it looks like HTTP without TLS
	// https://github.com/legation-io/legation/blob/main/docs/handshake-failures.md#not_tls
}

// What one side finds, another wants to switch on.
func ExampleError() {
	err := fmt.Errorf("call the model: %w", &handshake.Error{Cause: handshake.Expired, Whose: handshake.Own})

	if errors.Is(err, &handshake.Error{Cause: handshake.Expired}) {
		fmt.Println("renew, then try again")
	}
	// Output: renew, then try again
}

// The log of a net/http server, as records with the cause, the server name that
// was asked for, and the versions that were offered.
func ExampleErrorLog() {
	onlyWhatIsStable := func(_ []string, a slog.Attr) slog.Attr {
		switch a.Key {
		case slog.TimeKey, "remote", "local", "alpn", "guide":
			return slog.Attr{}
		}
		return a
	}
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: onlyWhatIsStable}))

	errorLog := handshake.NewErrorLog(handshake.ErrorLogConfig{Logger: logger})
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = errorLog.Observe(&tls.Config{MinVersion: tls.VersionTLS13})
	server.Config.ErrorLog = errorLog.Logger()
	server.StartTLS()

	_, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{ServerName: "model.internal", MaxVersion: tls.VersionTLS12})
	server.Close() // waits for its connections
	fmt.Println("the client:", err)
	// Output:
	// level=WARN msg="TLS handshake failed" error_type=tls_handshake_failed cause=protocol_version side=server refused_by=own detail="tls: client offered only unsupported versions: [303]" sni=model.internal offered="TLS 1.2"
	// the client: remote error: tls: protocol version not supported
}
