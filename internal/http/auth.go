package http

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// Limits of a keys file.
const (
	maxKeys      = 1024
	maxKeyLength = 1024
	minKeyLength = 16
)

// Keys are the keys that open the admin routes. They are held as SHA-256.
type Keys struct{ digests [][sha256.Size]byte }

// roleAdmin is the only role so far; the file names it so that others can be
// added without a new format.
const roleAdmin = "admin"

// ParseKeys reads a keys file: one key a line, empty lines and lines that begin
// with # are skipped. A line is either
//
//	admin:<SHA-256 of the key, 64 hexadecimal digits>
//	<the key itself, at least 16 characters without spaces>
//
// The first form keeps the keys out of the file. The error names the line and
// never quotes it.
func ParseKeys(r io.Reader) (*Keys, error) {
	k := &Keys{}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), 4*maxKeyLength)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if len(k.digests) >= maxKeys {
			return nil, fmt.Errorf("keys line %d: more than %d keys", n, maxKeys)
		}
		role, digest, hashed := strings.Cut(line, ":")
		if hashed {
			if role != roleAdmin {
				return nil, fmt.Errorf("keys line %d: unknown role before the colon, expected %q", n, roleAdmin)
			}
			b, err := hex.DecodeString(strings.TrimSpace(digest))
			if err != nil || len(b) != sha256.Size {
				return nil, fmt.Errorf("keys line %d: expected admin:<64 hexadecimal digits of SHA-256>", n)
			}
			k.digests = append(k.digests, [sha256.Size]byte(b))
			continue
		}
		if len(line) < minKeyLength || len(line) > maxKeyLength || strings.ContainsAny(line, " \t") {
			return nil, fmt.Errorf("keys line %d: a key has %d to %d characters and no spaces", n, minKeyLength, maxKeyLength)
		}
		k.digests = append(k.digests, sha256.Sum256([]byte(line)))
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if len(k.digests) == 0 {
		return nil, fmt.Errorf("keys: the file holds no key; write one a line")
	}
	return k, nil
}

// match compares in a time that does not depend on the key.
func (k *Keys) match(key string) bool {
	got := sha256.Sum256([]byte(key))
	ok := 0
	for i := range k.digests {
		ok |= subtle.ConstantTimeCompare(got[:], k.digests[i][:])
	}
	return ok == 1
}

// requestKey returns the key that a request carries, "" for none.
func requestKey(h http.Header) string {
	if key := h.Get("X-API-Key"); key != "" {
		return key
	}
	scheme, key, _ := strings.Cut(h.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(key)
	}
	return ""
}

// authorize lets a request reach an admin route. With keys, one of them is
// needed. Without, only a loopback listener is served, and only requests that
// no web page can have made: a page of another origin has an Origin header, and
// one that renamed itself to this address by DNS has a Host that is not ours.
func (s *Server) authorize(r *http.Request) error {
	if s.cfg.Keys != nil {
		key := requestKey(r.Header)
		if key == "" {
			return failf(http.StatusUnauthorized, "this route needs an admin key: send it as Authorization: Bearer KEY or X-API-Key: KEY")
		}
		if len(key) > maxKeyLength || !s.cfg.Keys.match(key) {
			return failf(http.StatusUnauthorized, "the key is not known to this server")
		}
		return nil
	}
	if !s.loopback.Load() {
		return failf(http.StatusForbidden, "admin routes are off because this server listens beyond loopback without keys: start it with --keys FILE, or listen on 127.0.0.1")
	}
	if !loopbackHost(r.Host) {
		return failf(http.StatusForbidden, "admin routes without a key answer only to the host names localhost, 127.0.0.1 and [::1]")
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || !strings.EqualFold(u.Host, r.Host) {
			return failf(http.StatusForbidden, "admin routes without a key refuse pages of other origins")
		}
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return nil
	}
	return failf(http.StatusForbidden, "admin routes without a key refuse pages of other origins")
}

// loopbackHost reports whether a Host header names this machine by itself.
func loopbackHost(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if strings.EqualFold(strings.TrimSuffix(name, "."), "localhost") {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}
