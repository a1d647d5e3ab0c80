package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/registry/disk"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// Kind of a data set.
type Kind string

// The kinds of data sets; see the contract of DATA on the command line.
const (
	KindNPZ    Kind = "npz"    // one array for each model input
	KindNPY    Kind = "npy"    // one array
	KindJSONL  Kind = "jsonl"  // one object a line
	KindImages Kind = "images" // a folder: class = subfolder, or labels.csv
	// KindCaptured is a snapshot of captured inputs; it has no name of its own.
	KindCaptured Kind = "captured"
)

// Dataset describes a stored data set.
type Dataset struct {
	Name    string    `json:"name"`
	Kind    Kind      `json:"kind"`
	SHA256  string    `json:"sha256"` // of the body as sent
	Size    int64     `json:"size"`   // of the body
	Files   int       `json:"files"`  // images in the zip; otherwise 1
	Created time.Time `json:"created"`
	Facts
}

// Facts are what validation tells of a data set.
type Facts struct {
	Samples  int  `json:"samples,omitempty"` // 0: unknown
	Labelled bool `json:"labelled,omitempty"`
}

// file is the data set's name in its view; readers go by the extension.
func (d Dataset) file() File {
	name := "data." + string(d.Kind)
	if d.Kind == KindImages {
		name = "images.zip"
	}
	return File{Name: name, SHA256: d.SHA256, Size: d.Size}
}

// PutDataset stores body under name, replacing what was there. The kind comes
// from the body's first bytes (for a zip, from its entries); contentType
// decides where they say nothing. size is the declared length, -1 if unknown.
//
// Errors: ErrName, ErrTooLarge, ErrInvalid, ErrNoSpace, and what reading body
// or ctx reports.
func (r *Registry) PutDataset(ctx context.Context, name string, body io.Reader, size int64, contentType string) (Dataset, error) {
	if err := CheckName(name); err != nil {
		return Dataset{}, err
	}
	if err := r.checkUpload(size); err != nil {
		return Dataset{}, err
	}
	tmp, err := os.MkdirTemp(r.session, "data-*")
	if err != nil {
		return Dataset{}, space(noPath(err))
	}
	defer os.RemoveAll(tmp)
	head, body, err := peek(body)
	if err != nil {
		return Dataset{}, err
	}
	kind, err := detect(head, contentType)
	if err != nil {
		return Dataset{}, err
	}
	d := Dataset{Name: name, Kind: kind, Files: 1, Created: time.Now().UTC().Truncate(time.Millisecond)}
	spool := filepath.Join(tmp, "data."+string(kind))
	if _, err := r.copyTo(ctx, spool, body, r.o.MaxUpload, "the body"); err != nil {
		return Dataset{}, err
	}
	path, images := spool, ""
	if kind == "zip" {
		var n int
		if d.Kind, n, err = r.unpackDataset(ctx, spool, filepath.Join(tmp, "images")); err != nil {
			return Dataset{}, err
		}
		if d.Kind == KindImages {
			images, d.Files = filepath.Join(tmp, "images"), n
			path = images
		} else {
			path = filepath.Join(tmp, d.file().Name)
			if err := os.Rename(spool, path); err != nil {
				return Dataset{}, noPath(err)
			}
			spool = path
		}
	}
	if r.o.ValidateDataset != nil {
		if d.Facts, err = r.o.ValidateDataset(ctx, path, d.Kind); err != nil {
			return Dataset{}, hide(refused(err), tmp)
		}
	}
	gc, err := lockfile.SharedWait(r.path(gcLock))
	if err != nil {
		return Dataset{}, err
	}
	defer gc.Release()
	f, err := r.adopt(ctx, spool, "")
	if err != nil {
		return Dataset{}, space(noPath(err))
	}
	d.SHA256, d.Size = f.SHA256, f.Size
	if images != "" {
		dir := r.imagesDir(d)
		if err := r.putView(images, dir, func() bool { return r.imagesReady(d) }); err != nil {
			return Dataset{}, space(noPath(err))
		}
	}
	err = r.locked(func() error { return r.writeJSON(r.path(datasetsDir, name+".json"), d) })
	if err != nil {
		return Dataset{}, space(noPath(err))
	}
	return d, nil
}

// KeepContents stores what write writes, under no name: whoever needs it longer
// than Options.Grace lists it in Options.Keep.
func (r *Registry) KeepContents(ctx context.Context, name string, kind Kind, write func(io.Writer) error) (Dataset, error) {
	f, err := os.CreateTemp(r.session, "contents-*")
	if err != nil {
		return Dataset{}, space(noPath(err))
	}
	defer os.Remove(f.Name())
	err = write(r.through(f))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return Dataset{}, space(noPath(err))
	}
	gc, err := lockfile.SharedWait(r.path(gcLock))
	if err != nil {
		return Dataset{}, err
	}
	defer gc.Release()
	c, err := r.adopt(ctx, f.Name(), "")
	if err != nil {
		return Dataset{}, space(noPath(err))
	}
	return Dataset{Name: name, Kind: kind, SHA256: c.SHA256, Size: c.Size, Files: 1, Created: time.Now().UTC()}, nil
}

// detect tells the kind of a body; "zip" needs a look at the entries.
func detect(head []byte, contentType string) (Kind, error) {
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \t\r\n")
	mime, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	switch {
	case len(head) == 0:
		return "", fmt.Errorf("%w: the body is empty", ErrInvalid)
	case isZip(head):
		return "zip", nil
	case bytes.HasPrefix(head, []byte("\x93NUMPY")):
		return KindNPY, nil
	case bytes.HasPrefix(text, []byte("{")):
		return KindJSONL, nil
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return "", fmt.Errorf("%w: the body is a gzip file; send it unpacked, or as HTTP content encoding", ErrInvalid)
	case slices.Contains([]string{"application/jsonl", "application/x-ndjson", "application/x-jsonlines"}, strings.TrimSpace(mime)):
		return "", fmt.Errorf("%w: the body is declared as JSON lines but does not begin with an object", ErrInvalid)
	}
	return "", fmt.Errorf("%w: the body is not .npz, .npy, .jsonl or a zip of images", ErrInvalid)
}

// unpackDataset looks into a zip: arrays make it an npz, which stays as it is;
// images are unpacked into dir, and counted.
func (r *Registry) unpackDataset(ctx context.Context, file, dir string) (Kind, int, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", 0, noPath(err)
	}
	defer f.Close()
	a, err := r.openArchive(f, MaxDatasetEntries, checkEntry)
	if err != nil {
		return "", 0, err
	}
	arrays, images := 0, 0
	for _, e := range a.entries {
		switch strings.ToLower(path.Ext(e.name)) {
		case ".npy":
			arrays++
		case ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff":
			images++
		}
	}
	switch {
	case arrays == len(a.entries):
		return KindNPZ, 0, nil
	case images > 0:
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", 0, space(noPath(err))
		}
		if err := a.unpack(ctx, r, dir); err != nil {
			return "", 0, err
		}
		return KindImages, images, space(noPath(disk.SyncTree(dir)))
	}
	return "", 0, fmt.Errorf("%w: the zip holds neither arrays (.npy) alone nor images (.jpg, .png); send text as .jsonl without zipping it", ErrInvalid)
}

// imagesDir is the view of a zip of images: unpacked once for each digest.
func (r *Registry) imagesDir(d Dataset) string {
	return r.path(viewsDir, viewKey([]File{{Name: "images", SHA256: d.SHA256, Size: d.Size}}))
}

// imagesReady reports whether the view exists, and marks it used. It came to
// be by one rename, so it is whole.
func (r *Registry) imagesReady(d Dataset) bool {
	now := time.Now()
	return os.Chtimes(r.imagesDir(d), now, now) == nil
}

// Datasets returns all data sets by name; see Models for damaged manifests.
func (r *Registry) Datasets() ([]Dataset, error) {
	es, err := os.ReadDir(r.path(datasetsDir))
	if err != nil {
		return nil, noPath(err)
	}
	var ds []Dataset
	var damaged []error
	for _, e := range es {
		d, err := r.Dataset(strings.TrimSuffix(e.Name(), ".json"))
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrName) {
			continue
		}
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		ds = append(ds, d)
	}
	return ds, errors.Join(damaged...)
}

// Dataset returns one data set.
func (r *Registry) Dataset(name string) (Dataset, error) {
	if err := CheckName(name); err != nil {
		return Dataset{}, err
	}
	var d Dataset
	err := readJSON(r.path(datasetsDir, name+".json"), &d)
	if errors.Is(err, fs.ErrNotExist) {
		return Dataset{}, fmt.Errorf("data set %s: %w", name, ErrNotFound)
	}
	if err == nil && !validDigest(d.SHA256) {
		err = fmt.Errorf("%w: damaged manifest", ErrInvalid)
	}
	if err != nil {
		return Dataset{}, fmt.Errorf("data set %s: %w", name, noPath(err))
	}
	d.Name = name
	return d, nil
}

// DatasetPath returns the file of a data set (data.npz, data.npy, data.jsonl)
// or, for images, its folder. It stays at least Options.Grace after the data
// set is deleted or replaced.
func (r *Registry) DatasetPath(ctx context.Context, name string) (string, Kind, error) {
	d, err := r.Dataset(name)
	if err != nil {
		return "", "", err
	}
	path, err := r.Contents(ctx, d)
	return path, d.Kind, err
}

// Contents is DatasetPath of a data set that the caller has: it may have been
// deleted or replaced since. ErrNotFound when its contents are gone (see
// Options.Keep).
func (r *Registry) Contents(ctx context.Context, d Dataset) (string, error) {
	if !validDigest(d.SHA256) {
		return "", fmt.Errorf("data set %s: %w: bad digest", d.Name, ErrInvalid)
	}
	gone := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("contents of data set %s: %w", d.Name, ErrNotFound)
		}
		return fmt.Errorf("data set %s: %w", d.Name, err)
	}
	if d.Kind != KindImages {
		dir, err := r.view([]File{d.file()})
		if err != nil {
			return "", gone(err)
		}
		return filepath.Join(dir, d.file().Name), nil
	}
	if r.imagesReady(d) {
		return r.imagesDir(d), nil
	}
	tmp, err := os.MkdirTemp(r.session, "images-*")
	if err != nil {
		return "", space(noPath(err))
	}
	defer os.RemoveAll(tmp)
	dir := filepath.Join(tmp, "images")
	if _, _, err := r.unpackDataset(ctx, r.blobPath(d.SHA256), dir); err != nil {
		return "", gone(err)
	}
	err = r.putView(dir, r.imagesDir(d), func() bool { return r.imagesReady(d) })
	return r.imagesDir(d), err
}

// DeleteDataset removes a data set. Jobs that read it go on.
func (r *Registry) DeleteDataset(name string) error {
	if _, err := r.Dataset(name); err != nil {
		return err
	}
	return r.locked(func() error {
		err := os.Remove(r.path(datasetsDir, name+".json"))
		if errors.Is(err, fs.ErrNotExist) { // somebody else was faster
			return fmt.Errorf("data set %s: %w", name, ErrNotFound)
		}
		if err != nil {
			return noPath(err)
		}
		return noPath(atomicfile.SyncDir(r.path(datasetsDir)))
	})
}
