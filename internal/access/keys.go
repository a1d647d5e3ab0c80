// Package access decides who may do what on a server: keys with a name and a
// role from a file of hashes, how many requests and failed attempts a client
// has, certificates that are replaced while the server runs, and the log of
// what administrators did.
package access

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Limits of a keys file.
const (
	// MaxKeys bounds the keys of a file.
	MaxKeys = 1024
	// MaxFileBytes bounds a keys file.
	MaxFileBytes = 1 << 20
	// MaxKeyLength bounds a key, in bytes: a longer one is not even hashed.
	MaxKeyLength = 1024
	// MinKeyLength is the least of a key that somebody brings. One round of
	// SHA-256 protects only what cannot be guessed (ADR 0017).
	MinKeyLength = 32
)

// keyBytes are the random bytes of a new key.
const keyBytes = 32

// keyPrefix lets scanners for leaked secrets recognise a key.
const keyPrefix = "fewbit_"

// hashPrefix stands in front of the digest and names its kind, so that another
// one can be added.
const hashPrefix = "sha256:"

// Errors of a keys file.
var (
	// ErrKeys marks a keys file that cannot be used.
	ErrKeys = errors.New("keys")
	// ErrNoKey reports a name that no key has.
	ErrNoKey = errors.New("no such key")
	// ErrTaken reports a name that a key has already.
	ErrTaken = errors.New("the name is taken")
)

// Role is what a key opens.
type Role string

// Roles. An administrator may also infer.
const (
	Infer Role = "infer"
	Admin Role = "admin"
)

// ParseRole reads a role.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case Infer, Admin:
		return r, nil
	}
	return "", fmt.Errorf("role %.40q: expected %s or %s", s, Infer, Admin)
}

// Allows reports whether a key of role r may do what needs the other one.
func (r Role) Allows(need Role) bool { return r == need || r == Admin }

// Key is a line of a keys file. The zero value is nobody's.
type Key struct {
	Name   string
	Role   Role
	digest [sha256.Size]byte
}

// namePattern is what a key may be called: a word of the file, of log lines and
// of audit entries.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// Keys are the content of a keys file. They do not change; nil has no key.
type Keys struct{ keys []Key }

// Parse reads a keys file: one key a line, empty lines and lines that begin with
// # are skipped.
//
//	NAME ROLE sha256:<64 hexadecimal digits>
//
// The error names the line and never quotes it. A file without any key is valid.
func Parse(b []byte) (*Keys, error) {
	if len(b) > MaxFileBytes {
		return nil, fmt.Errorf("%w: the file has more than %d bytes", ErrKeys, MaxFileBytes)
	}
	k := &Keys{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(make([]byte, 0, 4096), MaxFileBytes+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if len(k.keys) >= MaxKeys {
			return nil, fmt.Errorf("%w: line %d: more than %d keys", ErrKeys, n, MaxKeys)
		}
		key, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrKeys, n, err)
		}
		for _, other := range k.keys {
			switch {
			case other.Name == key.Name:
				return nil, fmt.Errorf("%w: line %d: the name stands twice; each key has its own", ErrKeys, n)
			case other.digest == key.digest:
				return nil, fmt.Errorf("%w: line %d: the same key stands twice", ErrKeys, n)
			}
		}
		k.keys = append(k.keys, key)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	return k, nil
}

func parseLine(line string) (Key, error) {
	f := strings.Fields(line)
	if len(f) != 3 {
		if role, digest, ok := strings.Cut(f[0], ":"); ok && role == string(Admin) && len(digest) == hex.EncodedLen(sha256.Size) {
			return Key{}, errors.New(`is of the older form admin:HASH; write it as "NAME admin sha256:HASH"`)
		}
		if len(f) == 1 {
			return Key{}, errors.New("is a key in clear text, which is no longer read; hash it with: fewbit keys new --stdin --role admin --name NAME")
		}
		return Key{}, errors.New(`expected "NAME ROLE sha256:HASH"; make lines with: fewbit keys new --role admin --name NAME`)
	}
	key := Key{Name: f[0]}
	if !namePattern.MatchString(key.Name) {
		return Key{}, errors.New("bad name: expected 1 to 64 of A-Z a-z 0-9 . _ @ -, starting with a letter or digit")
	}
	var err error
	if key.Role, err = ParseRole(f[1]); err != nil {
		return Key{}, fmt.Errorf("the role is neither %s nor %s", Infer, Admin)
	}
	digest, ok := strings.CutPrefix(f[2], hashPrefix)
	b, err := hex.DecodeString(digest)
	if !ok || err != nil || len(b) != sha256.Size {
		return Key{}, fmt.Errorf("expected %s and 64 hexadecimal digits", hashPrefix)
	}
	key.digest = [sha256.Size]byte(b)
	return key, nil
}

// Find returns the key with this text. It takes a time that depends on how many
// keys there are and not on which one, if any, it is.
func (k *Keys) Find(text string) (Key, bool) {
	if k == nil || len(text) > MaxKeyLength {
		return Key{}, false
	}
	got := sha256.Sum256([]byte(text))
	at := -1
	for i := range k.keys {
		at = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(got[:], k.keys[i].digest[:]), i, at)
	}
	if at < 0 {
		return Key{}, false
	}
	return k.keys[at], true
}

// Has reports whether a key has exactly this role.
func (k *Keys) Has(r Role) bool {
	if k == nil {
		return false
	}
	for i := range k.keys {
		if k.keys[i].Role == r {
			return true
		}
	}
	return false
}

// List returns the keys in the order of the file.
func (k *Keys) List() []Key {
	if k == nil {
		return nil
	}
	return append([]Key(nil), k.keys...)
}

// newText makes a key: 256 random bits.
func newText() string {
	b := make([]byte, keyBytes)
	_, _ = rand.Read(b) // crypto/rand.Read never fails
	return keyPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// line is a key as the file has it.
func line(name string, role Role, text string) string {
	return fmt.Sprintf("%s %s %s%x\n", name, role, hashPrefix, sha256.Sum256([]byte(text)))
}

// CheckText refuses a key that somebody brings: too short to withstand guessing
// against its hash, or not what a header can carry.
func CheckText(text string) error {
	if len(text) < MinKeyLength || len(text) > MaxKeyLength {
		return fmt.Errorf("%w: the key has %d characters, expected %d to %d; without --stdin one is made", ErrKeys, len(text), MinKeyLength, MaxKeyLength)
	}
	for _, c := range []byte(text) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("%w: the key holds a space or a character beyond ASCII, which a header does not carry", ErrKeys)
		}
	}
	return nil
}
