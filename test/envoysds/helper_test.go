package envoysds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/legation-io/legation/test/stand"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// The test's own binary is also a program of another user that asks for
// secrets, as an Envoy would.
const helperEnv = "LEGATION_TEST_SDS_CALL"

func TestMain(m *testing.M) {
	if raw := os.Getenv(helperEnv); raw != "" {
		if err := help(raw); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	stand.Main(m)
}

// sdsCall is one unary question.
type sdsCall struct {
	Unix  string // path of the socket, or
	TCP   string // HOST:PORT, verified by
	Roots string
	Name  string   // DNS name to verify; "" does not
	Names []string // secrets wanted
	// Shared gives the socket to a second process before anything is sent.
	Shared bool
}

func help(raw string) error {
	var c sdsCall
	if err := json.Unmarshal([]byte(raw), &c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stand.Patience)
	defer cancel()
	target, creds := "unix://"+c.Unix, insecure.NewCredentials()
	dial := grpc.WithDisableServiceConfig()
	if c.TCP != "" {
		pool := x509.NewCertPool()
		pemBytes, err := os.ReadFile(c.Roots)
		if err != nil {
			return err
		}
		if !pool.AppendCertsFromPEM(pemBytes) {
			return errors.New("no roots")
		}
		target, creds = "passthrough:///"+c.TCP, credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: c.Name, MinVersion: tls.VersionTLS13})
		dial = grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err != nil || !c.Shared {
				return conn, err
			}
			file, err := conn.(*net.TCPConn).File()
			if err != nil {
				return nil, err
			}
			defer file.Close()
			other := exec.CommandContext(ctx, "sleep", "30")
			other.ExtraFiles = []*os.File{file}
			return conn, other.Start() // killed with ctx
		})
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), dial)
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := secretv3.NewSecretDiscoveryServiceClient(conn).FetchSecrets(ctx, &discoveryv3.DiscoveryRequest{ResourceNames: c.Names})
	if err != nil {
		return err
	}
	got := map[string]string{}
	for _, x := range r.Resources {
		var s tlsv3.Secret
		if err := x.UnmarshalTo(&s); err != nil {
			return err
		}
		got[s.Name] = string(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes()) + string(s.GetTlsCertificate().GetPrivateKey().GetInlineBytes()) +
			string(s.GetValidationContext().GetTrustedCa().GetInlineBytes()) + string(s.GetValidationContext().GetCrl().GetInlineBytes())
	}
	return json.NewEncoder(os.Stdout).Encode(got)
}

// as runs the test's binary as the user and asks once.
func (r *rig) as(uid int, c sdsCall) (map[string]string, error) {
	r.t.Helper()
	raw, err := json.Marshal(c)
	if err != nil {
		r.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	to := filepath.Join(r.Dir, "caller")
	if os.Geteuid() != 0 {
		to = r.binary(uid) + "-caller"
	}
	if _, err := os.Stat(to); err != nil {
		if out, err := exec.Command("install", "-m", "755", self, to).CombinedOutput(); err != nil {
			r.t.Fatalf("%v: %s", err, out)
		}
	}
	argv := []string{to}
	if os.Geteuid() == 0 {
		id := strconv.Itoa(uid)
		argv = append([]string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups"}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), helperEnv+"="+string(raw))
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	got := map[string]string{}
	return got, json.Unmarshal([]byte(stdout.String()), &got)
}

// certificate is a user's, as SDS gives it.
func (r *rig) certificate(uid int, name string) tls.Certificate {
	r.t.Helper()
	got, err := r.as(uid, sdsCall{Unix: r.agent.Socket, Names: []string{name}})
	if err != nil {
		r.t.Fatal(err)
	}
	cert, err := tls.X509KeyPair([]byte(got[name]), []byte(got[name]))
	if err != nil {
		r.t.Fatal(err)
	}
	return cert
}

// handshake is one full handshake and request at the backend's Envoy; it
// returns the certificate presented.
func (r *rig) handshake(cert tls.Certificate) (*x509.Certificate, error) {
	pool := x509.NewCertPool()
	raw, err := os.ReadFile(r.roots)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(c)
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, // an SVID has no DNS name; the chain is verified
		VerifyConnection: func(s tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, c := range s.PeerCertificates[1:] {
				between.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between})
			return err
		},
	}}
	conn, err := d.Dial("tcp", r.inbound)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	// In TLS 1.3 a refusal of the client comes after the client has finished.
	_, werr := conn.Write([]byte("GET / HTTP/1.1\r\nHost: backend\r\nConnection: close\r\n\r\n"))
	head := make([]byte, 12)
	if _, err := conn.Read(head); err != nil {
		return nil, errors.Join(err, werr)
	}
	if string(head) != "HTTP/1.1 200" {
		return nil, fmt.Errorf("answered %q", head)
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}
