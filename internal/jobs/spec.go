package jobs

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// idBytes is the length of an id before encoding: 6 bytes of milliseconds and
// 9 random ones, or 15 of a key's digest; 24 characters.
const idBytes = 15

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// newID returns an id that sorts by time, or one that depends on key alone.
func newID(key string) string {
	var b [idBytes]byte
	if key != "" {
		sum := sha256.Sum256([]byte("fewbit job key\x00" + key))
		copy(b[:], sum[:])
		return idEncoding.EncodeToString(b[:])
	}
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(time.Now().UnixMilli()))
	copy(b[:6], ms[2:])
	_, _ = rand.Read(b[6:]) // never fails (crypto/rand)
	return idEncoding.EncodeToString(b[:])
}

// validID reports whether id can be one of ours; ids become parts of subjects.
func validID(id string) bool {
	if len(id) != idEncoding.EncodedLen(idBytes) {
		return false
	}
	_, err := idEncoding.DecodeString(id)
	return err == nil
}

// checkSpec bounds the request and returns the id it gets.
func checkSpec(s Spec) (string, error) {
	if len(s.Key) > MaxKeyBytes {
		return "", fmt.Errorf("%w: key has %d bytes, at most %d", ErrSpec, len(s.Key), MaxKeyBytes)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrSpec, err)
	}
	if len(b) > MaxSpecBytes {
		return "", fmt.Errorf("%w: it has %d bytes, at most %d", ErrSpec, len(b), MaxSpecBytes)
	}
	return newID(s.Key), nil
}

func sameSpec(a, b Spec) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// absolutePath matches /a/b... at the start of a word, so that "text/plain" and
// "1/3" stay, with the word before it: a route ("PUT /models/x") stays too.
var absolutePath = regexp.MustCompile(`(?:\b(?:GET|PUT|POST|DELETE) |^|[\s"'` + "`" + `(\[=:,<])(?:/[^\s"'` + "`" + `()\[\]:,;<>]+)`)

// PublicError words err for a client: one line, without the directories of
// this server (a path is cut down to its last element).
func PublicError(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error()
	var paths []string // exact, whatever characters they have
	var pe *fs.PathError
	if errors.As(err, &pe) {
		paths = append(paths, pe.Path)
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		paths = append(paths, le.Old, le.New)
	}
	for _, p := range paths {
		if p != "" { // which is between all characters
			s = strings.ReplaceAll(s, p, filepath.Base(p))
		}
	}
	s = strings.Join(strings.Fields(s), " ")
	s = absolutePath.ReplaceAllStringFunc(s, func(m string) string {
		i := strings.IndexByte(m, '/')
		if i > 1 { // a verb comes before
			return m
		}
		return m[:i] + path.Base(m[i:])
	})
	return clip(s, maxErrorBytes)
}

// clip shortens s to at most n bytes of valid UTF-8.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
