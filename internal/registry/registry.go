package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// Layout of the data directory. Everything is below one file system, because
// publishing is renaming.
//
//	blobs/sha256/ab/abcd...   contents, read-only, named by their digest
//	models/NAME/v/N.json      manifest of version N: file names -> digests
//	models/NAME/state.json    the default version and those before it
//	datasets/NAME.json        manifest of a data set
//	views/KEY/                a manifest's files under their own names (hard links); can be rebuilt
//	tmp/SESSION/              what a process is building; SESSION/.lock is held while it lives
//	lock.sweep lock.gc lock.meta
const (
	blobsDir    = "blobs/sha256"
	modelsDir   = "models"
	versionsDir = "v"
	datasetsDir = "datasets"
	viewsDir    = "views"
	tmpDir      = "tmp"
	preparedDir = ".prepared" // in a view: what the engine keeps of the model

	sweepLock = "lock.sweep" // exclusive: creating and removing sessions
	gcLock    = "lock.gc"    // shared: publishing; exclusive: collecting garbage
	metaLock  = "lock.meta"  // exclusive: changing manifests. Taken after gcLock
)

// Limits of what is accepted.
const (
	MaxVersions      = 100_000 // versions of one model, ever
	MaxModelFiles    = 256     // files of one version
	MaxHistory       = 100     // promotions remembered for roll-back
	maxManifestBytes = 1 << 20

	defaultMaxUpload   = 16 << 30
	defaultMaxExpanded = 32 << 30
	defaultGrace       = time.Hour
	freeReserve        = 64 << 20 // left free on the disk by uploads whose size is known
)

// Options configure Open. Zero values are the defaults.
type Options struct {
	// ValidateModel looks at the files of an uploaded model (dir/model.onnx
	// and what lies beside it) before they are published. Its error refuses
	// the upload, wrapped in ErrInvalid.
	ValidateModel func(dir string) error
	// ValidateDataset does the same for a data set: path is a file, or for
	// KindImages a folder. It also says what it saw.
	ValidateDataset func(ctx context.Context, path string, kind Kind) (Facts, error)
	// Keep says what somebody still needs though it may be deleted; GC asks. With
	// it Open collects no garbage: the caller calls GC when Keep can answer.
	Keep func(ctx context.Context) (Kept, error)
	// MaxUpload bounds the bytes of one body. Default 16 GiB.
	MaxUpload int64
	// MaxExpanded bounds the bytes of all files in one archive. Default 32 GiB.
	MaxExpanded int64
	// Grace is how long unreferenced contents and views stay. Default 1 h.
	Grace time.Duration
}

// Kept names contents that no manifest need name.
type Kept struct {
	Datasets []Dataset
	Versions []string // Version.Digest of models whose folders (Dir) are in use
}

// Registry is the store. Its methods are safe for concurrent use, by several
// processes on one directory too.
type Registry struct {
	root    string
	session string // our folder below tmp/
	lock    *lockfile.Lock
	o       Options
	// wrap, when set by a test, stands between a copy and its file.
	wrap func(writer) writer
}

// Open opens or creates the store in dir, removes what dead processes left
// half-made, and collects garbage (see Options.Keep). A damaged manifest does not keep it from
// opening (nothing is collected then); Models and LoadAll report it.
func Open(ctx context.Context, dir string, o Options) (*Registry, error) {
	if o.MaxUpload <= 0 {
		o.MaxUpload = defaultMaxUpload
	}
	if o.MaxExpanded <= 0 {
		o.MaxExpanded = defaultMaxExpanded
	}
	if o.Grace <= 0 {
		o.Grace = defaultGrace
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r := &Registry{root: root, o: o}
	for _, d := range []string{blobsDir, modelsDir, datasetsDir, viewsDir, tmpDir} {
		if err := mkdirs(r.path(d)); err != nil {
			return nil, fmt.Errorf("registry: %w", space(err))
		}
	}
	if err := r.openSession(); err != nil {
		return nil, fmt.Errorf("registry: %w", space(err))
	}
	if o.Keep != nil {
		return r, nil
	}
	if err := r.GC(ctx, o.Grace); err != nil && !errors.Is(err, ErrInvalid) {
		r.Close()
		return nil, fmt.Errorf("registry: %w", err)
	}
	return r, nil
}

// openSession creates our folder for temporary files and removes those whose
// owners have died.
func (r *Registry) openSession() error {
	sweep, err := lockfile.ExclusiveWait(r.path(sweepLock))
	if err != nil {
		return err
	}
	defer sweep.Release()
	old, err := os.ReadDir(r.path(tmpDir))
	if err != nil {
		return err
	}
	for _, e := range old {
		dir := r.path(tmpDir, e.Name())
		l, err := lockfile.Exclusive(filepath.Join(dir, ".lock"))
		if errors.Is(err, lockfile.ErrLocked) {
			continue // alive
		}
		err = os.RemoveAll(dir)
		l.Release()
		if err != nil {
			return err
		}
	}
	if r.session, err = os.MkdirTemp(r.path(tmpDir), "s-*"); err != nil {
		return err
	}
	r.lock, err = lockfile.Exclusive(filepath.Join(r.session, ".lock"))
	return err
}

// TempDir is a folder for temporary files on the registry's disk, until Close.
func (r *Registry) TempDir() string { return r.session }

// Close removes this process's temporary files.
func (r *Registry) Close() error {
	sweep, err := lockfile.ExclusiveWait(r.path(sweepLock))
	if err != nil {
		return err
	}
	defer sweep.Release()
	err = os.RemoveAll(r.session)
	r.lock.Release()
	return err
}

func (r *Registry) path(elem ...string) string {
	return filepath.Join(append([]string{r.root}, elem...)...)
}

// locked runs f while nobody else changes manifests.
func (r *Registry) locked(f func() error) error {
	l, err := lockfile.ExclusiveWait(r.path(metaLock))
	if err != nil {
		return err
	}
	defer l.Release()
	return f()
}
