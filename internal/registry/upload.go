package registry

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/registry/disk"
)

// Upload publishes the model in body: a zip (model.onnx and what belongs to
// it), or the bytes of an ONNX file. size is the declared length, -1 if
// unknown. The body is streamed to disk; nothing of it stays on error.
//
// Errors: ErrName, ErrTooLarge, ErrInvalid, ErrNoSpace, and what reading body
// or ctx reports.
func (r *Registry) Upload(ctx context.Context, model string, body io.Reader, size int64, about About) (Version, error) {
	if err := CheckName(model); err != nil {
		return Version{}, err
	}
	if err := r.checkUpload(size); err != nil {
		return Version{}, err
	}
	s, err := r.NewStage()
	if err != nil {
		return Version{}, err
	}
	defer s.Close()
	head, body, err := peek(body)
	switch {
	case err != nil:
		return Version{}, err
	case len(head) == 0:
		return Version{}, fmt.Errorf("%w: the body is empty, send an ONNX file or a zip with %s", ErrInvalid, ModelFile)
	case isZip(head):
		err = r.unpackModel(ctx, s, body)
	default:
		_, err = r.copyTo(ctx, filepath.Join(s.Dir(), ModelFile), body, r.o.MaxUpload, "the body")
	}
	if err != nil {
		return Version{}, err
	}
	if err := r.validate(s); err != nil {
		return Version{}, err
	}
	return r.Publish(ctx, model, s, about)
}

func (r *Registry) validate(s *Stage) error {
	if r.o.ValidateModel == nil {
		return nil
	}
	if err := r.o.ValidateModel(s.Dir()); err != nil {
		return hide(refused(err), s.Dir())
	}
	return nil
}

// UploadFiles publishes a model that comes as separate files, as version number
// where that is free (PublishAs). A version of the same number and files that
// was published so before is returned instead. What names an .onnx file, if it
// is the only one, is the graph. Errors are Upload's.
func (r *Registry) UploadFiles(ctx context.Context, model string, number int, files map[string]io.Reader) (Version, error) {
	if err := CheckName(model); err != nil {
		return Version{}, err
	}
	s, err := r.NewStage()
	if err != nil {
		return Version{}, err
	}
	defer s.Close()
	a := &archive{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := CheckFile(name); err != nil {
			return Version{}, err
		}
		a.entries = append(a.entries, entry{name: name})
	}
	from := slices.Clone(a.entries)
	if err := a.nameModel(); err != nil {
		return Version{}, err
	}
	h := sha256.New()
	fmt.Fprintln(h, number)
	left := r.o.MaxUpload
	for i, e := range a.entries {
		path := filepath.Join(s.Dir(), filepath.FromSlash(e.name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return Version{}, space(noPath(err))
		}
		n, err := r.copyTo(ctx, path, files[from[i].name], left, "the request")
		if err != nil {
			return Version{}, err
		}
		left -= n
		digest, _, err := digestFile(ctx, path)
		if err != nil {
			return Version{}, noPath(err)
		}
		fmt.Fprintln(h, e.name, digest)
	}
	key := "files:" + hex.EncodeToString(h.Sum(nil))
	if v, ok := r.byKey(model, key); ok {
		return v, nil
	}
	if err := r.validate(s); err != nil {
		return Version{}, err
	}
	return r.PublishAs(ctx, model, s, About{Key: key}, number)
}

// refused marks a validation error as the client's, unless it already says
// what it is.
func refused(err error) error {
	for _, e := range []error{ErrInvalid, ErrTooLarge, ErrNoSpace, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrInvalid, space(err))
}

func (r *Registry) checkUpload(size int64) error {
	if size > r.o.MaxUpload {
		return fmt.Errorf("%w: the body has %d bytes, at most %d", ErrTooLarge, size, r.o.MaxUpload)
	}
	return r.checkFree(size)
}

// checkFree returns ErrNoSpace when n more bytes do not fit on the disk.
func (r *Registry) checkFree(n int64) error {
	if n <= 0 {
		return nil
	}
	free, total, ok := disk.Space(r.root)
	if !ok {
		return nil // writing will tell
	}
	if reserve := min(freeReserve, total/20); uint64(n) > free || free-uint64(n) < reserve {
		return fmt.Errorf("%w: %d bytes are needed, %d are free, of which %d are kept free; delete models or data sets that are not needed, or use a larger disk", ErrNoSpace, n, free, reserve)
	}
	return nil
}

// peek returns the first bytes of a body and the whole of it.
func peek(body io.Reader) ([]byte, io.Reader, error) {
	b := bufio.NewReaderSize(body, 64<<10)
	head, err := b.Peek(512)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	return head, b, nil
}

func (r *Registry) unpackModel(ctx context.Context, s *Stage, body io.Reader) error {
	spool := filepath.Join(s.dir, "upload.zip")
	if _, err := r.copyTo(ctx, spool, body, r.o.MaxUpload, "the body"); err != nil {
		return err
	}
	f, err := os.Open(spool)
	if err != nil {
		return noPath(err)
	}
	defer os.Remove(spool)
	defer f.Close()
	a, err := r.openArchive(f, MaxModelEntries, CheckFile)
	if err != nil {
		return err
	}
	if err := a.nameModel(); err != nil {
		return err
	}
	return a.unpack(ctx, r, s.Dir())
}

// nameModel finds the graph: model.onnx, or else the only .onnx file, which is
// renamed (external data does not depend on the graph's own name).
func (a *archive) nameModel() error {
	var graphs []int
	for i, e := range a.entries {
		if e.name == ModelFile {
			return nil
		}
		if strings.HasSuffix(e.name, ".onnx") {
			graphs = append(graphs, i)
		}
	}
	if len(graphs) != 1 {
		return fmt.Errorf("%w: there is no %s and there are %d other .onnx files, send %s", ErrInvalid, ModelFile, len(graphs), ModelFile)
	}
	a.entries[graphs[0]].name = ModelFile
	return nil
}
