package registry

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// Limits of archives.
const (
	MaxModelEntries   = 1024    // entries of a model's zip, folders included
	MaxDatasetEntries = 200_000 // images of a data set
	maxEntryOverhead  = 2048    // bytes of central directory an entry may take, on average
)

// isZip knows the first bytes of a zip, and of one without entries.
func isZip(head []byte) bool {
	return bytes.HasPrefix(head, []byte("PK\x03\x04")) || bytes.HasPrefix(head, []byte("PK\x05\x06"))
}

// archive is an opened zip whose entries have been checked: names, kinds,
// declared sizes.
type archive struct {
	entries []entry
	total   int64 // declared bytes of all entries
}

type entry struct {
	name string // slash-separated, relative, without the folder common to all
	f    *zip.File
}

// directoryReader limits what is read while the central directory is parsed.
// archive/zip trusts neither the declared number of entries nor the declared
// size of the directory: it reads on while it finds headers, and keeps each.
type directoryReader struct {
	r    io.ReaderAt
	left atomic.Int64
}

var errDirectory = errors.New("too many entries")

func (d *directoryReader) ReadAt(p []byte, off int64) (int, error) {
	if d.left.Add(-int64(len(p))) < 0 {
		return 0, errDirectory
	}
	return d.r.ReadAt(p, off)
}

// openArchive reads the directory of the zip in f and checks every entry
// before anything is unpacked. check judges names.
func (r *Registry) openArchive(f *os.File, maxEntries int, check func(string) error) (*archive, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &directoryReader{r: f}
	d.left.Store(int64(maxEntries)*maxEntryOverhead + 1<<20)
	z, err := zip.NewReader(d, st.Size())
	switch {
	case errors.Is(err, errDirectory), err == nil && len(z.File) > maxEntries:
		return nil, fmt.Errorf("%w: the zip has more than %d entries", ErrTooLarge, maxEntries)
	case errors.Is(err, zip.ErrInsecurePath): // worded by check below
	case err != nil:
		return nil, fmt.Errorf("%w: the body begins like a zip but cannot be read as one (%v); is it complete?", ErrInvalid, noPath(err))
	}
	d.left.Store(1 << 62)
	a := &archive{}
	seen := map[string]bool{}
	for _, zf := range z.File {
		name, dir := strings.CutSuffix(zf.Name, "/")
		if junk(name) {
			continue
		}
		mode := zf.Mode()
		switch {
		case dir && mode.IsDir():
			continue // made as needed
		case !mode.IsRegular() || dir:
			return nil, fmt.Errorf("%w: zip entry %.60q is a link or a device, only regular files are taken", ErrInvalid, zf.Name)
		case zf.Flags&1 != 0:
			return nil, fmt.Errorf("%w: zip entry %.60q is encrypted", ErrInvalid, zf.Name)
		case zf.Method != zip.Store && zf.Method != zip.Deflate:
			return nil, fmt.Errorf("%w: zip entry %.60q uses compression method %d, use stored or deflate", ErrInvalid, zf.Name, zf.Method)
		}
		if err := checkEntry(name); err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, fmt.Errorf("%w: zip entry %.60q is there twice", ErrInvalid, name)
		}
		seen[name] = true
		if zf.UncompressedSize64 > uint64(r.o.MaxExpanded) {
			return nil, fmt.Errorf("%w: zip entry %.60q unpacks to %d bytes, at most %d", ErrTooLarge, name, zf.UncompressedSize64, r.o.MaxExpanded)
		}
		if a.total += int64(zf.UncompressedSize64); a.total > r.o.MaxExpanded {
			return nil, fmt.Errorf("%w: the zip unpacks to more than %d bytes", ErrTooLarge, r.o.MaxExpanded)
		}
		a.entries = append(a.entries, entry{name: name, f: zf})
	}
	if len(a.entries) == 0 {
		return nil, fmt.Errorf("%w: the zip is empty", ErrInvalid)
	}
	a.strip()
	names := map[string]bool{}
	for _, e := range a.entries {
		if err := check(e.name); err != nil {
			return nil, err
		}
		names[e.name] = true
	}
	for _, e := range a.entries { // "a" and "a/b" cannot both be files
		for p := path.Dir(e.name); p != "."; p = path.Dir(p) {
			if names[p] {
				return nil, fmt.Errorf("%w: zip entry %.60q is both a file and a folder", ErrInvalid, p)
			}
		}
	}
	return a, nil
}

// junk reports what desktop systems add to archives.
func junk(name string) bool {
	if strings.HasPrefix(name, "__MACOSX/") || name == "__MACOSX" {
		return true
	}
	switch path.Base(name) {
	case ".DS_Store", "Thumbs.db", "desktop.ini":
		return true
	}
	return false
}

// strip removes the folder that all entries have in common, which is what
// comes of zipping a folder. Folders that mean something are not touched by
// it: a single class of images keeps its name through labels, 1_Pooling never
// stands alone.
func (a *archive) strip() {
	first, _, ok := strings.Cut(a.entries[0].name, "/")
	if !ok {
		return
	}
	for _, e := range a.entries {
		if !strings.HasPrefix(e.name, first+"/") {
			return
		}
	}
	for i := range a.entries {
		a.entries[i].name = strings.TrimPrefix(a.entries[i].name, first+"/")
	}
}

// unpack writes all entries below dir.
func (a *archive) unpack(ctx context.Context, r *Registry, dir string) error {
	if err := r.checkFree(a.total); err != nil {
		return err
	}
	for _, e := range a.entries {
		if err := a.unpackOne(ctx, r, e, filepath.Join(dir, filepath.FromSlash(e.name))); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) unpackOne(ctx context.Context, r *Registry, e entry, dst string) error {
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return space(noPath(err))
	}
	src, err := e.f.Open()
	if err != nil {
		return fmt.Errorf("%w: zip entry %.60q: %v", ErrInvalid, e.name, noPath(err))
	}
	defer src.Close()
	// The declared size was counted against the limit, so it must hold: what
	// goes on longer is cut off here.
	n, err := r.copyTo(ctx, dst, zipReader{src, e.name}, int64(e.f.UncompressedSize64), "zip entry "+e.name)
	if errors.Is(err, ErrTooLarge) {
		return fmt.Errorf("%w: zip entry %.60q is longer than the %d bytes it declares", ErrInvalid, e.name, e.f.UncompressedSize64)
	}
	if err == nil && n != int64(e.f.UncompressedSize64) {
		return fmt.Errorf("%w: zip entry %.60q has %d bytes, it declares %d", ErrInvalid, e.name, n, e.f.UncompressedSize64)
	}
	return err
}

// zipReader words what is wrong with compressed data (checksum, truncation).
type zipReader struct {
	r    io.Reader
	name string
}

func (z zipReader) Read(p []byte) (int, error) {
	n, err := z.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: zip entry %.60q: %v", ErrInvalid, z.name, noPath(err))
	}
	return n, err
}
