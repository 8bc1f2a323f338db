package handshake

import "strings"

// looksLike guesses a protocol from the first five bytes that a peer sent.
func looksLike(head [5]byte) string {
	s := string(head[:])
	for _, p := range plaintexts {
		if strings.HasPrefix(s, p.head) {
			return p.name
		}
	}
	for _, c := range head {
		if c != '\r' && c != '\n' && c != '\t' && (c < ' ' || c > '~') {
			return "an unknown binary protocol, starting with " + quote(s, 8)
		}
	}
	return "an unknown text protocol, starting with " + quote(s, 8)
}

// plaintexts by how they start, most specific first.
var plaintexts = []struct{ head, name string }{
	{"GET /", "HTTP without TLS"}, {"GET h", "HTTP without TLS"}, {"POST ", "HTTP without TLS"}, {"PUT /", "HTTP without TLS"},
	{"HEAD ", "HTTP without TLS"}, {"DELET", "HTTP without TLS"}, {"PATCH", "HTTP without TLS"}, {"OPTIO", "HTTP without TLS"},
	{"TRACE", "HTTP without TLS"}, {"HTTP/", "an HTTP answer without TLS"},
	{"CONNE", "an HTTP proxy request (CONNECT)"},
	{"PRI *", "HTTP/2 without TLS (h2c), perhaps gRPC without credentials"},
	{"\x00\x00\x00\x04\x00", "HTTP/2 without TLS (h2c), perhaps gRPC without credentials"}, // an empty SETTINGS
	{"\x00\x00\x06\x04\x00", "HTTP/2 without TLS (h2c), perhaps gRPC without credentials"},
	{"\x00\x00\x0c\x04\x00", "HTTP/2 without TLS (h2c), perhaps gRPC without credentials"},
	{"\x00\x00\x12\x04\x00", "HTTP/2 without TLS (h2c), perhaps gRPC without credentials"},
	{"\x00\x00\x18\x04\x00", "HTTP/2 without TLS (h2c), perhaps gRPC without credentials"},
	{"SSH-", "SSH"},
	{"PROXY", "the PROXY protocol, version 1: a load balancer sends it before TLS"},
	{"\r\n\r\n\x00", "the PROXY protocol, version 2: a load balancer sends it before TLS"},
	{"EHLO ", "SMTP"}, {"HELO ", "SMTP"}, {"220 ", "SMTP or FTP, waiting for STARTTLS"}, {"220-", "SMTP or FTP, waiting for STARTTLS"},
	{"* OK ", "IMAP, waiting for STARTTLS"}, {"+OK ", "POP3, waiting for STLS"},
	{"\x00\x00\x00\x08\x04", "PostgreSQL, asking for TLS in its own way"},
	{"*1\r\n$", "Redis without TLS"}, {"*2\r\n$", "Redis without TLS"}, {"*3\r\n$", "Redis without TLS"}, {"-ERR ", "Redis without TLS"},
	{"PING\r", "Redis without TLS"}, {"-DENI", "Redis without TLS"},
	{"stats", "memcached"}, {"\x03\x00\x00", "RDP"}, {"INFO ", "NATS"}, {"CONNECT", "NATS"},
	{"AMQP\x00", "AMQP without TLS"}, {"<?xml", "XML, perhaps XMPP, waiting for STARTTLS"}, {"<stre", "XMPP, waiting for STARTTLS"},
	{"\x05", "SOCKS 5"}, {"\x04\x01", "SOCKS 4"}, {"BitTo", "BitTorrent"}, {"\x13BitT", "BitTorrent"},
}
