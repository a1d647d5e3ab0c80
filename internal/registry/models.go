package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// ModelFile is the name of the graph in every version.
const ModelFile = "model.onnx"

// Version is one published, immutable state of a model.
type Version struct {
	Model   string    `json:"model"`
	Number  int       `json:"version"`
	Files   []File    `json:"files"` // by name
	Created time.Time `json:"created"`
	About   About     `json:"about"`
}

// About is what a publisher says of a version.
type About struct {
	// Scheme is int8, int8-dynamic, int4, fp16, mixed; "" means as uploaded.
	Scheme string `json:"scheme,omitempty"`
	// Source names the version it was made from, as NAME/N.
	Source string `json:"source,omitempty"`
	// TargetMS is the latency target in milliseconds; 0 is the server's default.
	TargetMS float64 `json:"target_ms,omitempty"`
	// Key makes publishing idempotent: a second version of the same model with
	// the same key is not made; the first is returned. Jobs use their id.
	Key string `json:"key,omitempty"`
}

// File returns the entry of that name.
func (v Version) File(name string) (File, bool) {
	for _, f := range v.Files {
		if f.Name == name {
			return f, true
		}
	}
	return File{}, false
}

// Size returns the bytes of all files.
func (v Version) Size() int64 {
	var n int64
	for _, f := range v.Files {
		n += f.Size
	}
	return n
}

// Digest returns a SHA-256 over the names and contents of all files.
func (v Version) Digest() string { return viewKey(v.Files) }

// ID returns the version as part of URLs and of the wire protocol: "3".
func (v Version) ID() string { return strconv.Itoa(v.Number) }

// Model is a name with its versions, oldest first.
type Model struct {
	Name     string
	Default  int // 0: none
	Versions []Version
}

// state is models/NAME/state.json.
type state struct {
	Default int   `json:"default"`
	History []int `json:"history,omitempty"` // earlier defaults, latest last
	Next    int   `json:"next"`              // numbers are never used again
}

// Stage is a private folder in which the files of a version are put together.
// Publish empties it; Close removes it.
type Stage struct {
	r   *Registry
	dir string // holds files/ and, while unpacking, the archive
}

// NewStage returns an empty stage. Close it.
func (r *Registry) NewStage() (*Stage, error) {
	dir, err := os.MkdirTemp(r.session, "stage-*")
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "files"), 0o755)
	}
	if err != nil {
		return nil, space(noPath(err))
	}
	return &Stage{r: r, dir: dir}, nil
}

// Dir is where the files go: write model.onnx and what belongs to it here.
func (s *Stage) Dir() string { return filepath.Join(s.dir, "files") }

// Link adds files of a published version under the same names, without copying
// them; names that v lacks are skipped.
func (s *Stage) Link(v Version, names ...string) error {
	for _, name := range names {
		f, ok := v.File(name)
		if !ok {
			continue
		}
		dst := filepath.Join(s.Dir(), f.Name)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return space(noPath(err))
		}
		if err := linkOrCopy(s.r.blobPath(f.SHA256), dst); err != nil {
			return fmt.Errorf("file %s of version %d: %w", name, v.Number, space(noPath(err)))
		}
	}
	return nil
}

// Close removes the stage and what is left in it.
func (s *Stage) Close() error { return os.RemoveAll(s.dir) }

// files lists the staged files by name, or says which may not be there.
func (s *Stage) files() ([]string, error) {
	var names []string
	err := filepath.WalkDir(s.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(s.Dir(), path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if err := CheckFile(name); err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%w: %s is not a regular file", ErrInvalid, name)
		}
		if names = append(names, name); len(names) > MaxModelFiles {
			return fmt.Errorf("%w: more than %d files", ErrTooLarge, MaxModelFiles)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	if !slices.Contains(names, ModelFile) {
		return nil, fmt.Errorf("%w: there is no %s", ErrInvalid, ModelFile)
	}
	return names, nil
}

// Publish makes the staged files the next version of the model. The first
// version of a model becomes its default. Either the whole version is visible
// and durable afterwards, or nothing is.
func (r *Registry) Publish(ctx context.Context, model string, s *Stage, about About) (Version, error) {
	return r.PublishAs(ctx, model, s, about, 0)
}

// PublishAs is Publish with a number for the version, which counts as long as no
// version has had it or a larger one.
func (r *Registry) PublishAs(ctx context.Context, model string, s *Stage, about About, number int) (Version, error) {
	if err := CheckName(model); err != nil {
		return Version{}, err
	}
	names, err := s.files()
	if err != nil {
		return Version{}, err
	}
	gc, err := lockfile.SharedWait(r.path(gcLock)) // the blobs are unreferenced for a moment
	if err != nil {
		return Version{}, err
	}
	defer gc.Release()
	if about.Key != "" {
		if v, ok := r.byKey(model, about.Key); ok {
			return v, nil
		}
	}
	v := Version{Model: model, About: about, Created: time.Now().UTC().Truncate(time.Millisecond)}
	for _, name := range names {
		f, err := r.adopt(ctx, filepath.Join(s.Dir(), name), name)
		if err != nil {
			return Version{}, fmt.Errorf("file %s: %w", name, space(noPath(err)))
		}
		v.Files = append(v.Files, f)
	}
	err = r.locked(func() error {
		if about.Key != "" { // another run of the same job may have been faster
			if old, ok := r.byKey(model, about.Key); ok {
				v = old
				return nil
			}
		}
		if err := mkdirs(r.path(modelsDir, model, versionsDir)); err != nil {
			return err
		}
		st, numbers, err := r.state(model)
		if err != nil {
			return err
		}
		if v.Number = max(st.Next, number); v.Number > MaxVersions {
			return fmt.Errorf("%w: model %s has had %d versions", ErrTooLarge, model, MaxVersions)
		}
		if err := r.writeJSON(r.manifest(model, v.Number), v); err != nil {
			return err
		}
		st.Next = v.Number + 1
		if len(numbers) == 0 {
			st.promote(v.Number)
		}
		return r.writeJSON(r.path(modelsDir, model, "state.json"), st)
	})
	if err != nil {
		return Version{}, space(noPath(err))
	}
	return v, nil
}

func (r *Registry) manifest(model string, n int) string {
	return r.path(modelsDir, model, versionsDir, strconv.Itoa(n)+".json")
}

func (r *Registry) byKey(model, key string) (Version, bool) {
	m, _ := r.Model(model) // none, or what is whole of it
	for _, v := range m.Versions {
		if v.About.Key == key {
			return v, true
		}
	}
	return Version{}, false
}

// numbers lists the versions that exist, ascending.
func (r *Registry) numbers(model string) ([]int, error) {
	es, err := os.ReadDir(r.path(modelsDir, model, versionsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ns []int
	for _, e := range es {
		if n, err := parseVersion(strings.TrimSuffix(e.Name(), ".json")); err == nil {
			ns = append(ns, n)
		}
	}
	slices.Sort(ns)
	return ns, nil
}

// state returns what state.json says, corrected by the versions that exist: a
// crash may lie between the two.
func (r *Registry) state(model string) (state, []int, error) {
	ns, err := r.numbers(model)
	if err != nil {
		return state{}, nil, err
	}
	var st state
	err = readJSON(r.path(modelsDir, model, "state.json"), &st)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return state{}, nil, fmt.Errorf("state of model %s: %w", model, noPath(err))
	}
	st.Next = max(st.Next, 1)
	exists := func(n int) bool { _, ok := slices.BinarySearch(ns, n); return ok }
	st.History = slices.DeleteFunc(st.History, func(n int) bool { return !exists(n) })
	if len(ns) > 0 {
		st.Next = max(st.Next, ns[len(ns)-1]+1)
		if st.Default == 0 && len(ns) == 1 && (fresh || ns[0] == 1) { // died between manifest and state
			st.Default = ns[0]
		}
	}
	if !exists(st.Default) {
		st.Default = 0
	}
	return st, ns, nil
}

func (st *state) promote(n int) {
	if st.Default == n {
		return
	}
	if st.Default != 0 {
		st.History = append(st.History, st.Default)
		if extra := len(st.History) - MaxHistory; extra > 0 {
			st.History = slices.Delete(st.History, 0, extra)
		}
	}
	st.Default = n
}

// Models returns all models by name. A damaged manifest is reported in the
// error and left out; the rest is returned all the same.
func (r *Registry) Models() ([]Model, error) {
	es, err := os.ReadDir(r.path(modelsDir))
	if err != nil {
		return nil, noPath(err)
	}
	var ms []Model
	var damaged []error
	for _, e := range es {
		m, err := r.Model(e.Name())
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrName) {
			continue // being created or deleted
		}
		damaged = append(damaged, err)
		if len(m.Versions) > 0 {
			ms = append(ms, m)
		}
	}
	return ms, errors.Join(damaged...)
}

// Model returns one model, or ErrNotFound when it has no versions. With a
// damaged manifest it returns an error and the versions that are whole.
func (r *Registry) Model(name string) (Model, error) {
	if err := CheckName(name); err != nil {
		return Model{}, err
	}
	st, ns, err := r.state(name)
	if err != nil {
		return Model{}, noPath(err)
	}
	m := Model{Name: name, Default: st.Default}
	var damaged []error
	for _, n := range ns {
		switch v, err := r.version(name, n); {
		case err == nil:
			m.Versions = append(m.Versions, v)
		case !errors.Is(err, ErrNotFound):
			damaged = append(damaged, err)
		}
	}
	if len(m.Versions) == 0 && len(damaged) == 0 {
		return Model{}, fmt.Errorf("model %s: %w", name, ErrNotFound)
	}
	return m, errors.Join(damaged...)
}

// Version returns one version; "" is the default.
// Errors: ErrName, ErrNotFound.
func (r *Registry) Version(model, version string) (Version, error) {
	if err := CheckName(model); err != nil {
		return Version{}, err
	}
	if version != "" {
		n, err := parseVersion(version)
		if err != nil {
			return Version{}, err
		}
		return r.version(model, n)
	}
	st, ns, err := r.state(model)
	switch {
	case err != nil:
		return Version{}, noPath(err)
	case len(ns) == 0:
		return Version{}, fmt.Errorf("model %s: %w", model, ErrNotFound)
	case st.Default == 0:
		return Version{}, fmt.Errorf("model %s has no default version, promote one: %w", model, ErrNotFound)
	}
	return r.version(model, st.Default)
}

func (r *Registry) version(model string, n int) (Version, error) {
	var v Version
	err := readJSON(r.manifest(model, n), &v)
	if errors.Is(err, fs.ErrNotExist) {
		return Version{}, fmt.Errorf("version %d of model %s: %w", n, model, ErrNotFound)
	}
	if err != nil {
		return Version{}, fmt.Errorf("version %d of model %s: %w", n, model, noPath(err))
	}
	for _, f := range v.Files {
		if CheckFile(f.Name) != nil || !validDigest(f.SHA256) || f.Size < 0 {
			return Version{}, fmt.Errorf("version %d of model %s: %w: damaged manifest", n, model, ErrInvalid)
		}
	}
	v.Model, v.Number = model, n
	return v, nil
}

// Path returns a folder with the version's files under their own names, as
// ONNX Runtime needs them (external data lies beside model.onnx). The files
// are shared and read-only. The folder stays at least Options.Grace after the
// version is deleted.
func (r *Registry) Path(model, version string) (dir string, err error) {
	v, err := r.Version(model, version)
	if err != nil {
		return "", err
	}
	return r.Dir(v)
}

// Dir is Path of a version that the caller has: it may have been deleted since,
// while its contents are there.
func (r *Registry) Dir(v Version) (string, error) {
	dir, err := r.view(v.Files)
	if err != nil {
		return "", fmt.Errorf("version %d of model %s: %w", v.Number, v.Model, err)
	}
	return dir, nil
}

// Promote makes the version the default.
func (r *Registry) Promote(model, version string) error {
	v, err := r.Version(model, version)
	if err != nil {
		return err
	}
	return r.changeState(model, func(st *state) error {
		st.promote(v.Number)
		return nil
	})
}

// Previous returns the version that Rollback would make the default.
func (r *Registry) Previous(model string) (Version, error) {
	if err := CheckName(model); err != nil {
		return Version{}, err
	}
	st, ns, err := r.state(model)
	if err != nil {
		return Version{}, noPath(err)
	}
	if len(ns) == 0 {
		return Version{}, fmt.Errorf("model %s: %w", model, ErrNotFound)
	}
	if len(st.History) == 0 {
		return Version{}, fmt.Errorf("model %s has no earlier default: %w", model, ErrNotFound)
	}
	return r.version(model, st.History[len(st.History)-1])
}

// Rollback makes the previous default the default again and returns it.
func (r *Registry) Rollback(model string) (Version, error) {
	if _, err := r.Previous(model); err != nil {
		return Version{}, err
	}
	n := 0
	err := r.changeState(model, func(st *state) error {
		last := len(st.History) - 1
		if last < 0 {
			return fmt.Errorf("model %s has no earlier default: %w", model, ErrNotFound)
		}
		n = st.History[last]
		st.Default, st.History = n, st.History[:last]
		return nil
	})
	if err != nil {
		return Version{}, err
	}
	return r.version(model, n)
}

func (r *Registry) changeState(model string, f func(*state) error) error {
	return r.locked(func() error {
		st, _, err := r.state(model)
		if err != nil {
			return noPath(err)
		}
		if err := f(&st); err != nil {
			return err
		}
		return space(noPath(r.writeJSON(r.path(modelsDir, model, "state.json"), st)))
	})
}

// DeleteVersion removes one version. The default is refused with ErrInUse, be
// it the only one or not: promote another first, or delete the model. Numbers
// are not used again while the model exists.
func (r *Registry) DeleteVersion(model, version string) error {
	if version == "" {
		return fmt.Errorf("%w: say which version to delete", ErrName)
	}
	v, err := r.Version(model, version)
	if err != nil {
		return err
	}
	last := false
	err = r.locked(func() error {
		st, ns, err := r.state(model)
		if err != nil {
			return noPath(err)
		}
		if _, ok := slices.BinarySearch(ns, v.Number); !ok { // somebody else was faster
			return fmt.Errorf("version %d of model %s: %w", v.Number, model, ErrNotFound)
		}
		switch only := len(ns) == 1; {
		case st.Default == v.Number && only:
			return fmt.Errorf("version %d is the only one of model %s and its default, delete the model itself: %w", v.Number, model, ErrInUse)
		case st.Default == v.Number:
			return fmt.Errorf("version %d is the default of model %s, promote another first: %w", v.Number, model, ErrInUse)
		case only: // without a default: what is left is no model
			last = true
			return nil
		}
		if err := r.writeJSON(r.path(modelsDir, model, "state.json"), st); err != nil { // keeps Next
			return space(noPath(err))
		}
		if err := os.Remove(r.manifest(model, v.Number)); err != nil {
			return noPath(err)
		}
		return noPath(atomicfile.SyncDir(r.path(modelsDir, model, versionsDir)))
	})
	if err == nil && last {
		return r.DeleteModel(model)
	}
	return err
}

// DeleteModel removes a model with all versions, at once for every reader.
func (r *Registry) DeleteModel(model string) error {
	if _, err := r.Model(model); errors.Is(err, ErrNotFound) || errors.Is(err, ErrName) {
		return err
	}
	return r.locked(func() error {
		dead, err := os.MkdirTemp(r.session, "deleted-*")
		if err != nil {
			return space(noPath(err))
		}
		err = os.Rename(r.path(modelsDir, model), filepath.Join(dead, model))
		if errors.Is(err, fs.ErrNotExist) { // somebody else was faster
			return errors.Join(fmt.Errorf("model %s: %w", model, ErrNotFound), os.RemoveAll(dead))
		}
		if err != nil {
			return noPath(err)
		}
		if err := atomicfile.SyncDir(r.path(modelsDir)); err != nil {
			return noPath(err)
		}
		return noPath(os.RemoveAll(dead))
	})
}
