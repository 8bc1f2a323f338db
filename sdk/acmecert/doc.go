// Package acmecert gets public server certificates by ACME (RFC 8555) inside
// the program that serves them, and keeps them current. It answers "which
// certificate do I show under this name"; who may connect is left to the
// server, and who a client is to sdk/mtls: a certificate from here never
// authenticates a client.
//
//	m, err := acmecert.New(acmecert.Config{
//		Domains: []string{"model.example.org"}, Email: "ops@example.org",
//		TermsAgreed: true, Storage: folder,
//	})
//	go m.Run(ctx)                                         // orders and renews until ctx ends
//	go http.ListenAndServe(":80", m.HTTPHandler(nil))     // answers HTTP-01
//	server := &http.Server{Addr: ":443", Handler: h, TLSConfig: m.TLSConfig()}
//	err = server.ListenAndServeTLS("", "")
//
// # How it stands on certmagic
//
// Orders, locks between replicas, keys and the layout of what is stored are
// certmagic's, DNS-01 is its solver over libdns providers, the protocol below
// is acmez. Its process-wide parts are not used, since two Managers in one
// program would then share a job queue, a rate limiter that never ends and a
// time limit: renewal, the HTTP client, challenges, OCSP staples and retries
// are this package's, owned by Run, which leaves no goroutine behind.
//
// # What is refused
//
// Only https is spoken to a CA, redirects are not followed, answers are
// limited to 1 MiB, a chain to 64 KiB and ten certificates. A challenge token
// must be of the base64url alphabet (RFC 8555 8.3) and never becomes a path. An
// issued certificate is used only if it has the key and exactly the name that
// were asked for, is for servers, is valid now and its chain links up;
// otherwise the one before stays and the reason is logged, counted and in
// Status. After a rate limit nothing is sent before the time that the CA said.
//
// # Metrics
//
//	legation_acme_orders_total{result="ok|refused|limited|error"}
//	legation_acme_order_seconds                                 how long an order took
//	legation_acme_requests_total{result="ok|bad_nonce|limited|error"}
//	legation_acme_certificate_expiry_timestamp_seconds{domain}  Unix time
//	legation_acme_staples_total{result="ok|error"}
package acmecert
