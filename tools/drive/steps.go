package drive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Steps remembers the results of what is done, so that a run that was
// interrupted goes on where it stopped. They lie in one file, written after each.
type Steps struct {
	path  string
	out   io.Writer
	state stepState
}

type stepState struct {
	Stamp string             `json:"stamp"`
	Done  map[string]oneStep `json:"done"`
}

type oneStep struct {
	When   time.Time       `json:"when"`
	Result json.RawMessage `json:"result"`
}

// OpenSteps reads the file at path, which need not be there. Steps with another
// stamp are of other inputs or settings and are forgotten.
func OpenSteps(path, stamp string, out io.Writer) (*Steps, error) {
	s := &Steps{path: path, out: out, state: stepState{Stamp: stamp, Done: map[string]oneStep{}}}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return nil, err
	}
	var old stepState
	if json.Unmarshal(b, &old) == nil && old.Stamp == stamp && old.Done != nil {
		s.state = old
	}
	return s, nil
}

// Do returns the kept result of the named step, or does it and keeps what it
// returns. The title is shown.
func Do[T any](s *Steps, name, title string, f func() (T, error)) (T, error) {
	var v T
	if old, ok := s.state.Done[name]; ok && json.Unmarshal(old.Result, &v) == nil {
		fmt.Fprintf(s.out, "==> %s: kept from %s\n", title, old.When.Format("2006-01-02 15:04"))
		return v, nil
	}
	fmt.Fprintf(s.out, "==> %s\n", title)
	v, err := f()
	if err != nil {
		return v, err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return v, err
	}
	s.state.Done[name] = oneStep{When: time.Now(), Result: b}
	return v, s.write()
}

// Forget makes the next run do these steps again.
func (s *Steps) Forget(names ...string) error {
	for _, n := range names {
		delete(s.state.Done, n)
	}
	return s.write()
}

func (s *Steps) write() error {
	b, err := json.MarshalIndent(s.state, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return err
	}
	tmp := s.path + ".part"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, s.path)
}

// NeedSpace refuses when the file system of dir, or of the nearest folder above
// that exists, has less room than bytes.
func NeedSpace(dir string, bytes int64) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	for at := abs; ; at = filepath.Dir(at) {
		if err = unix.Statfs(at, &st); err == nil || !errors.Is(err, os.ErrNotExist) || at == filepath.Dir(at) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("the space below %s cannot be read: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < bytes {
		return fmt.Errorf("%s has %.1f GB free, %.1f GB are needed; free some, or give another folder with -dir", dir, float64(free)/1e9, float64(bytes)/1e9)
	}
	return nil
}
