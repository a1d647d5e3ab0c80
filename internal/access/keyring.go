package access

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// Keyring holds the keys of a file, which may change. Nil is a server without
// keys.
type Keyring struct {
	path string
	mu   sync.Mutex // one Reload at a time
	keys atomic.Pointer[Keys]
	// inferNeeded stays set once a key for inference was seen: taking the last
	// one out of the file must not open the routes that it closed.
	inferNeeded atomic.Bool
}

// Open reads the keys file at path. A file without a key is refused: whoever
// names one expects that it closes something.
func Open(path string) (*Keyring, error) {
	r := &Keyring{path: path}
	keys, err := ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	if len(keys.keys) == 0 {
		return nil, fmt.Errorf("%s: %w: the file holds no key; make one with: fewbit keys new --role admin --name NAME", filepath.Base(path), ErrKeys)
	}
	r.set(keys)
	return r, nil
}

// Static is a keyring of keys that stay.
func Static(keys *Keys) *Keyring {
	r := &Keyring{}
	r.set(keys)
	return r
}

func (r *Keyring) set(keys *Keys) {
	if keys.Has(Infer) {
		r.inferNeeded.Store(true)
	}
	r.keys.Store(keys)
}

// Reload reads the file again. After an error the keys stay as they were. A file
// without a key takes every key back.
func (r *Keyring) Reload() error {
	if r == nil || r.path == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	keys, err := ReadFile(r.path)
	if err != nil {
		return fmt.Errorf("%s: %w; the keys stay as they were", filepath.Base(r.path), err)
	}
	r.set(keys)
	return nil
}

// Present reports whether there are keys at all: then administrators need one
// everywhere.
func (r *Keyring) Present() bool { return r != nil }

// Find returns the key with this text.
func (r *Keyring) Find(text string) (Key, bool) {
	if r == nil || text == "" {
		return Key{}, false
	}
	return r.keys.Load().Find(text)
}

// Has reports whether a key has exactly this role now.
func (r *Keyring) Has(role Role) bool { return r != nil && r.keys.Load().Has(role) }

// InferNeeded reports whether inference needs a key: the file holds, or held
// since the server started, one of that role.
func (r *Keyring) InferNeeded() bool { return r != nil && r.inferNeeded.Load() }

// Count is the number of keys now.
func (r *Keyring) Count() int {
	if r == nil {
		return 0
	}
	return len(r.keys.Load().keys)
}
