package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fewbit/fewbit/internal/atomicfile"
)

// writer is what contents are written through.
type writer interface {
	io.Writer
	Sync() error
}

// space gives errors of a full disk their identity.
func space(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: delete models or data sets that are not needed, or use a larger disk: %w", ErrNoSpace, noPath(err))
	}
	return err
}

// noPath strips an error of the operating system of its path.
func noPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", pe.Op, pe.Err)
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		return fmt.Errorf("%s: %w", le.Op, le.Err)
	}
	return err
}

// hidden is err with a shorter text, so that a folder of this server does not
// appear in what a client reads.
type hidden struct {
	err  error
	text string
}

func (h hidden) Error() string { return h.text }
func (h hidden) Unwrap() error { return h.err }

func hide(err error, dir string) error {
	text := strings.ReplaceAll(err.Error(), dir+string(filepath.Separator), "")
	return hidden{err: err, text: strings.ReplaceAll(text, dir, ".")}
}

// mkdirs creates a directory with its parents, durably.
func mkdirs(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := mkdirs(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return atomicfile.SyncDir(parent)
}

// writeJSON replaces path by v: temporary file, fsync, rename, fsync of the
// directory. A reader sees the old or the new contents, whole.
func (r *Registry) writeJSON(path string, v any) (err error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(r.session, "json-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := r.through(f).Write(append(b, '\n')); err != nil {
		return err
	}
	if err := r.through(f).Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// readJSON reads a manifest; the error is fs.ErrNotExist when there is none.
func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err != nil {
		return err
	}
	if len(b) > maxManifestBytes {
		return fmt.Errorf("%w: manifest of more than %d bytes", ErrInvalid, maxManifestBytes)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: damaged manifest: %v", ErrInvalid, err)
	}
	return nil
}

func (r *Registry) through(f *os.File) writer {
	if r.wrap != nil {
		return r.wrap(f)
	}
	return f
}

// copyTo streams src into the new file path, at most max bytes; what is the
// name used in errors. Nothing stays when it fails.
func (r *Registry) copyTo(ctx context.Context, path string, src io.Reader, max int64, what string) (n int64, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, space(err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = space(cerr)
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	n, err = io.CopyBuffer(struct{ io.Writer }{r.through(f)}, io.LimitReader(&roomReader{r: r, src: &contextReader{ctx, src}, left: roomEvery}, max+1), make([]byte, 256<<10))
	if err != nil {
		return n, space(noPath(err))
	}
	if n > max {
		return n, fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, what, max)
	}
	return n, nil
}

// contextReader stops when ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// roomEvery is how much is read between two looks at the disk.
const roomEvery = 1 << 20

// roomReader stops before the disk is full, so that what else is stored on it
// (jobs, manifests) can go on: the length of src may not be known before.
type roomReader struct {
	r    *Registry
	src  io.Reader
	left int // bytes until the next look
}

func (r *roomReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		if err := r.r.checkFree(roomEvery); err != nil {
			return 0, err
		}
		r.left = roomEvery
	}
	n, err := r.src.Read(p)
	r.left -= n
	return n, err
}

// File is one file of a model or data set.
type File struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// blobPath returns where contents with that digest lie.
func (r *Registry) blobPath(digest string) string {
	return r.path(blobsDir, digest[:2], digest)
}

func validDigest(s string) bool {
	if len(s) != 2*sha256.Size || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// digestFile returns the SHA-256 and size of a file.
func digestFile(ctx context.Context, path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, &contextReader{ctx, f}, make([]byte, 256<<10))
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// adopt moves the file at path, which nobody else writes, among the blobs.
// Afterwards path is gone and the blob is durable. The caller holds gcLock.
func (r *Registry) adopt(ctx context.Context, path, name string) (File, error) {
	digest, size, err := digestFile(ctx, path)
	if err != nil {
		return File{}, err
	}
	if err := r.syncFile(path); err != nil {
		return File{}, err
	}
	blob := r.blobPath(digest)
	if err := mkdirs(filepath.Dir(blob)); err != nil {
		return File{}, err
	}
	err = os.Link(path, blob)
	switch {
	case errors.Is(err, fs.ErrExist):
		// The same contents are there: keep them, unless they lost their end.
		if st, err := os.Stat(blob); err != nil || st.Size() != size {
			if err := os.Rename(path, blob); err != nil {
				return File{}, err
			}
		}
		now := time.Now()
		if err := os.Chtimes(blob, now, now); err != nil {
			return File{}, err
		}
	case err != nil: // no hard links here
		if err := os.Rename(path, blob); err != nil {
			return File{}, err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return File{}, err
	}
	return File{Name: name, SHA256: digest, Size: size}, atomicfile.SyncDir(filepath.Dir(blob))
}

// syncFile makes a file's contents durable and the file read-only.
func (r *Registry) syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		// A hard link to a blob is read-only and durable already.
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	return r.through(f).Sync()
}

// linkOrCopy gives the contents at src a second name.
func linkOrCopy(src, dst string) error {
	if err := os.Link(src, dst); err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// viewKey names the folder in which files appear under their own names: equal
// lists, equal key.
func viewKey(files []File) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%s %s\n", f.SHA256, f.Name)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// view returns a folder that holds files under their names, making it if needed.
func (r *Registry) view(files []File) (string, error) {
	dir := r.path(viewsDir, viewKey(files))
	whole := func() bool {
		for _, f := range files {
			st, err := os.Lstat(filepath.Join(dir, f.Name))
			if err != nil || !st.Mode().IsRegular() || st.Size() != f.Size {
				return false
			}
		}
		now := time.Now()
		return os.Chtimes(dir, now, now) == nil // in use: see GC
	}
	if whole() {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(r.session, "view-*")
	if err != nil {
		return "", space(err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	for _, f := range files {
		dst := filepath.Join(tmp, f.Name)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return "", space(err)
		}
		if err := linkOrCopy(r.blobPath(f.SHA256), dst); err != nil {
			return "", fmt.Errorf("file %s: %w", f.Name, space(noPath(err)))
		}
	}
	return dir, r.putView(tmp, dir, whole)
}

// putView renames tmp to dir. Another process may have been first, or a crash
// may have left a damaged folder there, which is replaced.
func (r *Registry) putView(tmp, dir string, whole func() bool) error {
	err := os.Rename(tmp, dir)
	if err == nil || whole() {
		return nil
	}
	broken := filepath.Join(r.session, filepath.Base(dir)+".old")
	if err := os.Rename(dir, broken); err != nil {
		return err
	}
	defer os.RemoveAll(broken)
	if err := os.Rename(tmp, dir); err != nil && !whole() {
		return err
	}
	return nil
}
