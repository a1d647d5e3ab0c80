package access

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/bare"
)

// ErrTLS marks certificates that cannot be used.
var ErrTLS = errors.New("certificates")

// maxPEMBytes bounds a file of certificates or a key.
const maxPEMBytes = 4 << 20

// Certificates are a server's certificate and the authorities whose clients it
// serves, from files that may be replaced while it runs.
type Certificates struct {
	cert, key, clientCA string
	now                 atomic.Pointer[loadedTLS]
}

type loadedTLS struct {
	cert    tls.Certificate
	clients *x509.CertPool // nil: clients need no certificate
}

// LoadCertificates reads a certificate chain and its key, and, unless it is "",
// the authorities that clients' certificates must come from: all in PEM.
func LoadCertificates(cert, key, clientCA string) (*Certificates, error) {
	c := &Certificates{cert: cert, key: key, clientCA: clientCA}
	return c, c.Reload()
}

// Reload reads the files again. After an error the old ones stay in use.
// Connections that exist are not touched.
func (c *Certificates) Reload() error {
	if c == nil {
		return nil
	}
	certPEM, err := readPEM(c.cert)
	if err != nil {
		return err
	}
	keyPEM, err := readPEM(c.key)
	if err != nil {
		return err
	}
	l := &loadedTLS{}
	if l.cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return fmt.Errorf("%w: %s and %s: %w", ErrTLS, filepath.Base(c.cert), filepath.Base(c.key), err)
	}
	if now := time.Now(); now.After(l.cert.Leaf.NotAfter) {
		return fmt.Errorf("%w: %s expired on %s", ErrTLS, filepath.Base(c.cert), l.cert.Leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if c.clientCA != "" {
		ca, err := readPEM(c.clientCA)
		if err != nil {
			return err
		}
		l.clients = x509.NewCertPool()
		if !l.clients.AppendCertsFromPEM(ca) {
			return fmt.Errorf("%w: %s holds no certificate in PEM", ErrTLS, filepath.Base(c.clientCA))
		}
	}
	c.now.Store(l)
	return nil
}

func readPEM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrTLS, filepath.Base(path), bare.Error(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPEMBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrTLS, filepath.Base(path), bare.Error(err))
	case len(b) > maxPEMBytes:
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrTLS, filepath.Base(path), maxPEMBytes)
	}
	return b, nil
}

// Expires is when the certificate in use ends.
func (c *Certificates) Expires() time.Time { return c.now.Load().cert.Leaf.NotAfter }

// Config is for a server that speaks protocols (ALPN), the preferred one first.
// Each connection gets what was read last. It is nil without certificates.
func (c *Certificates) Config(protocols ...string) *tls.Config {
	if c == nil {
		return nil
	}
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols}
	current := func() *tls.Config {
		l := c.now.Load()
		cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, Certificates: []tls.Certificate{l.cert}}
		if l.clients != nil {
			cfg.ClientCAs, cfg.ClientAuth = l.clients, tls.RequireAndVerifyClientCert
			cfg.SessionTicketsDisabled = true // a resumed session would outlive the authority that vouched for it
		}
		return cfg
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return current(), nil }
	// Servers that look for a certificate before they start find one.
	base.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.now.Load().cert, nil }
	return base
}
