#!/usr/bin/env python3
"""Asks the model service for a prediction over mutual TLS.

The identity comes from the SPIFFE Workload API (SPIFFE_ENDPOINT_SOCKET), is
handed to OpenSSL as an object, and is never written to a file. The process
locks its memory, so that nothing of it is swapped, and cannot be dumped or
traced by other processes of its user. What Python copied on the way (the
bytes of the answer, for one) cannot be wiped: it goes with the process.

  predict.py --server spiffe://example.org/ns/default/sa/model \\
             https://127.0.0.1:8443 sentiment "works great"
"""
import argparse
import ctypes
import http.client
import io
import json
import os
import signal
import socket
import sys
import urllib.parse

from OpenSSL import SSL, crypto
from cryptography import x509
from spiffe import SpiffeId, WorkloadApiClient
from spiffe.errors import PySpiffeError

PR_SET_DUMPABLE = 4
MCL_CURRENT, MCL_FUTURE = 1, 2
PATIENCE = 30  # seconds for all of it


def lock_memory():
    """mlockall(2) and PR_SET_DUMPABLE 0, before there is a secret."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("predict: the process cannot be made undumpable: " + os.strerror(ctypes.get_errno()))
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        sys.exit("predict: its memory cannot be locked: %s; raise RLIMIT_MEMLOCK (ulimit -l unlimited, "
                 "systemd: LimitMEMLOCK=infinity)" % os.strerror(ctypes.get_errno()))


def give_up(_signal, _frame):
    sys.exit("predict: no answer within %d s" % PATIENCE)


def spiffe_id(certificate):
    """The one URI name of an X.509-SVID (X509-SVID 2), or None."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 else None


class Identity:
    """An SSL.Context with the identity of this process and the roots of its trust domain."""

    def __init__(self, want, timeout=10):
        try:
            with WorkloadApiClient() as api:
                answer = api.fetch_x509_context(timeout=timeout)
        except PySpiffeError as e:
            sys.exit("predict: %s" % e)
        svid = answer.default_svid
        self.id = str(svid.spiffe_id)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.use_privatekey(svid.private_key)
        chain = svid.cert_chain
        context.use_certificate(chain[0])
        for certificate in chain[1:]:
            context.add_extra_chain_cert(certificate)
        # Only the roots of the server's own trust domain may vouch for it.
        bundle = answer.x509_bundle_set.get_bundle_for_trust_domain(SpiffeId(want).trust_domain)
        if bundle is None:
            sys.exit("predict: no roots are known for the trust domain of " + want)
        store = context.get_cert_store()
        for root in bundle.x509_authorities:
            store.add_cert(crypto.X509.from_cryptography(root))

        def verify(_connection, certificate, _error, depth, ok):
            return bool(ok) and (depth > 0 or spiffe_id(certificate.to_cryptography()) == want)

        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        self.context = context


class Stream(io.RawIOBase):
    """What http.client reads from."""

    def __init__(self, connection):
        self.connection = connection

    def readable(self):
        return True

    def readinto(self, buffer):
        try:
            data = self.connection.recv(len(buffer))
        except SSL.ZeroReturnError:
            return 0
        buffer[:len(data)] = data
        return len(data)


class Socket:
    """The two methods that http.client needs of a socket."""

    def __init__(self, connection):
        self.connection = connection

    def sendall(self, data):
        self.connection.sendall(data)

    def makefile(self, *_args, **_kwargs):
        return io.BufferedReader(Stream(self.connection))

    def close(self):
        pass


def connect(identity, host, port):
    raw = socket.create_connection((host, port), timeout=10)
    raw.settimeout(None)  # pyOpenSSL wants a blocking socket; PATIENCE bounds it
    connection = SSL.Connection(identity.context, raw)
    connection.set_connect_state()
    connection.do_handshake()
    return connection


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, metavar="SPIFFE_ID", help="who must answer")
    parser.add_argument("url", help="https://host:port of the model service's mTLS port")
    parser.add_argument("model")
    parser.add_argument("text")
    args = parser.parse_args()

    lock_memory()
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    identity = Identity(args.server)
    url = urllib.parse.urlsplit(args.url)
    if url.scheme != "https" or not url.hostname:
        sys.exit("predict: the URL must be https://host:port, it is " + args.url)
    try:
        connection = connect(identity, url.hostname, url.port or 443)
    except SSL.Error as e:
        sys.exit("predict: the handshake with %s failed, it must be %s: %s" % (args.url, args.server, e))
    h = http.client.HTTPConnection(url.hostname, url.port)
    h.sock = Socket(connection)
    h.request("POST", "/v1/models/%s:predict" % urllib.parse.quote(args.model, safe=""),
              body=json.dumps({"text": args.text}), headers={"Content-Type": "application/json"})
    answer = h.getresponse()
    body = answer.read().decode().strip()
    if answer.status != 200:
        sys.exit("predict: %s, asked as %s, answered %d: %s" % (args.url, identity.id, answer.status, body))
    print(body)


if __name__ == "__main__":
    main()
