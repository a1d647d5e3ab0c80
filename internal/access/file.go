package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// keysMode are the permissions of a new keys file. Hashes of 256 random bits
// betray nothing, names do.
const keysMode = 0o600

// ReadFile reads a keys file.
func ReadFile(path string) (*Keys, error) {
	b, err := readAll(path)
	if err != nil {
		return nil, err
	}
	return Parse(b)
}

func readAll(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, bare.Error(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, bare.Error(err))
	}
	return b, nil
}

// Add appends a key to the file, which is made when there is none. text is the
// key; "" makes one. It returns the key, of which only the hash is kept.
func Add(path, name string, role Role, text string) (string, error) {
	if !namePattern.MatchString(name) {
		return "", fmt.Errorf("%w: bad name %.80q: expected 1 to 64 of A-Z a-z 0-9 . _ @ -, starting with a letter or digit", ErrKeys, name)
	}
	if text == "" {
		text = newText()
	} else if err := CheckText(text); err != nil {
		return "", err
	}
	return text, edit(path, func(old []byte, keys *Keys) ([]byte, error) {
		for _, k := range keys.List() {
			if k.Name == name {
				return nil, fmt.Errorf("%w: %s; choose another, or remove it first with: fewbit keys remove %s", ErrTaken, name, name)
			}
		}
		if len(old) > 0 && old[len(old)-1] != '\n' {
			old = append(old, '\n')
		}
		return append(old, line(name, role, text)...), nil
	})
}

// Remove takes a key out of the file.
func Remove(path, name string) error {
	return edit(path, func(old []byte, keys *Keys) ([]byte, error) {
		var kept bytes.Buffer
		found := false
		for l := range bytes.Lines(old) {
			if f := strings.Fields(string(l)); len(f) == 3 && f[0] == name {
				found = true
				continue
			}
			kept.Write(l)
		}
		if !found {
			return nil, fmt.Errorf("%w: %.80q; fewbit keys list shows the names", ErrNoKey, name)
		}
		return kept.Bytes(), nil
	})
}

// edit replaces the file by what change makes of it, in one step: a server that
// reads it meanwhile sees the old one or the new one.
func edit(path string, change func(old []byte, keys *Keys) ([]byte, error)) error {
	lock, err := lockfile.ExclusiveWait(path + ".lock")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKeys, bare.Error(err))
	}
	defer lock.Release()
	mode := os.FileMode(keysMode)
	old, err := readAll(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		if st, err := os.Stat(path); err == nil {
			mode = st.Mode().Perm()
		}
	}
	keys, err := Parse(old)
	if err != nil {
		return err
	}
	b, err := change(old, keys)
	if err != nil {
		return err
	}
	if _, err := Parse(b); err != nil {
		return err
	}
	return replace(path, b, mode)
}

// replace writes a file under a name of its own, syncs it and renames it.
func replace(path string, b []byte, mode os.FileMode) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // the link stays one
	}
	f := atomicfile.File{Path: path, Temp: ".keys-*", Mode: mode}
	if err := f.WriteBytes(b); err != nil {
		return fmt.Errorf("%w: %w", ErrKeys, bare.Error(err))
	}
	return nil
}
