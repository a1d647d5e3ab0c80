package access_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/access/accesstest"
)

// serve shakes hands with whoever connects, until the test ends, and returns the
// address.
func serve(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if c.(*tls.Conn).HandshakeContext(context.Background()) == nil {
					_, _ = c.Write([]byte("hello"))
				}
			}()
		}
	}()
	return l.Addr().String()
}

// hello connects and reads: with TLS 1.3 a client learns from the read that its
// certificate was refused.
func hello(t *testing.T, addr string, cfg *tls.Config) (who string, err error) {
	t.Helper()
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: cfg}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err = c.Read(make([]byte, 5)); err != nil {
		return "", err
	}
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

// Certificates are replaced while the server runs; what is broken is not taken.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	ca := accesstest.NewAuthority(t, "ca")
	cert, key, _ := ca.Write(t, dir, "one")
	c, err := access.LoadCertificates(cert, key, "")
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, c.Config("h2", "http/1.1"))
	client := ca.Client(t, nil, "")
	if who, err := hello(t, addr, client); who != "one" || err != nil {
		t.Errorf("%q, %v", who, err)
	}
	old := client.Clone()
	old.MaxVersion, old.MinVersion = tls.VersionTLS11, tls.VersionTLS10
	if _, err := hello(t, addr, old); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
	ca.Write(t, dir, "two")
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
	if who, err := hello(t, addr, client); who != "two" || err != nil {
		t.Errorf("after the change: %q, %v", who, err)
	}
	other, _ := ca.Issue(t, "three", time.Now().Add(time.Hour))
	expired, expiredKey := ca.Issue(t, "four", time.Now().Add(-time.Hour))
	keyPEM, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	for says, files := range map[string][2][]byte{
		"does not match": {other, keyPEM}, "expired": {expired, expiredKey}, "PEM": {[]byte("nothing"), keyPEM},
		"bytes": {make([]byte, 5<<20), keyPEM},
	} {
		if err := errors.Join(os.WriteFile(cert, files[0], 0o600), os.WriteFile(key, files[1], 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := c.Reload(); !errors.Is(err, access.ErrTLS) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", says, err)
		}
	}
	if who, err := hello(t, addr, client); who != "two" || err != nil {
		t.Errorf("after broken files: %q, %v", who, err)
	}
	if _, err := access.LoadCertificates(filepath.Join(dir, "none"), key, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	var none *access.Certificates
	if none.Config("h2") != nil || none.Reload() != nil {
		t.Error("no certificates make a configuration")
	}
}

// Clients without a certificate of the authority are refused, and those of an
// authority that was replaced are from then on.
func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	ca, theirs, strangers := accesstest.NewAuthority(t, "ca"), accesstest.NewAuthority(t, "clients"), accesstest.NewAuthority(t, "strangers")
	cert, key, _ := ca.Write(t, dir, "server")
	clients := filepath.Join(dir, "clients.pem")
	if err := os.WriteFile(clients, theirs.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := access.LoadCertificates(cert, key, clients)
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, c.Config("h2"))
	known := ca.Client(t, theirs, "shop")
	known.ClientSessionCache = tls.NewLRUClientSessionCache(4) // a resumed session must not get in either
	for what, client := range map[string]struct {
		cfg *tls.Config
		ok  bool
	}{"none": {ca.Client(t, nil, ""), false}, "a stranger's": {ca.Client(t, strangers, "shop"), false}, "one of theirs": {known, true}} {
		if _, err := hello(t, addr, client.cfg); (err == nil) != client.ok {
			t.Errorf("a client with %s certificate: %v", what, err)
		}
	}
	if err := os.WriteFile(clients, strangers.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := hello(t, addr, known); err == nil {
		t.Error("a client of the authority before is let in")
	}
	if err := os.WriteFile(clients, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(); !errors.Is(err, access.ErrTLS) {
		t.Errorf("no authority in the file: %v", err)
	}
}
