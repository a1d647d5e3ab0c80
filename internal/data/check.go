package data

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zip"

	"github.com/fewbit/fewbit/internal/task/vision"
)

// Facts are what can be told of a data set without a model.
type Facts struct {
	Samples  int // 0 when only a model can tell: arrays of several lengths
	Labelled bool
}

// So many images, of so many pixels together, are decoded wholly by Check; of
// the others the header is read.
const (
	checkedImages = 64
	checkedPixels = 256 << 20
)

// Check looks at the data set at path without a model and refuses what no model
// could use: arrays that are damaged or cut off, lines that are no texts, images
// that cannot be read, labels that contradict each other, nothing at all. It
// reads a file whole; of a folder of images all headers, and some to the end.
//
// Errors: those of Open, and ctx's.
func Check(ctx context.Context, path string) (Facts, error) {
	name := filepath.Base(path)
	info, err := os.Stat(path)
	if err != nil {
		return Facts{}, fmt.Errorf("%w: %s cannot be read", ErrNotFound, name)
	}
	if info.IsDir() {
		return checkImages(ctx, &images{files: os.DirFS(path), name: name})
	}
	f, err := os.Open(path)
	if err != nil {
		return Facts{}, fmt.Errorf("%w: %s cannot be opened", ErrNotFound, name)
	}
	defer f.Close()
	return checkFile(ctx, diskFile{f}, info.Size(), name)
}

func checkFile(ctx context.Context, f file, size int64, name string) (Facts, error) {
	head := make([]byte, sniffBytes)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Facts{}, fmt.Errorf("%w: %s cannot be read", ErrFormat, name)
	}
	switch kindOf(head[:n]) {
	case kindNPY:
		c, err := npyColumn(f, 0, size, strings.TrimSuffix(name, ".npy"))
		if err != nil {
			return Facts{}, fmt.Errorf("%s: %w", name, err)
		}
		if c.rows() == 0 {
			return Facts{}, fmt.Errorf("%w: %s has shape %v", ErrEmpty, name, c.dims)
		}
		return Facts{Samples: c.rows()}, nil
	case kindZip:
		return checkZip(ctx, f, size, name)
	case kindJSONL:
		t := &texts{name: name, check: true}
		if err := t.index(ctx, io.NewSectionReader(f, 0, size)); err != nil {
			return Facts{}, err
		}
		return Facts{Samples: t.n, Labelled: t.hasLabels}, nil
	}
	return Facts{}, fmt.Errorf("%w: %s is neither .npz, .npy, .jsonl nor images", ErrFormat, name)
}

func checkZip(ctx context.Context, f file, size int64, name string) (Facts, error) {
	z, err := zip.NewReader(f, size)
	if err != nil {
		return Facts{}, fmt.Errorf("%w: %s is not a whole zip archive (%w)", ErrFormat, name, err)
	}
	if len(z.File) > maxZipEntries {
		return Facts{}, fmt.Errorf("%w: %s has %d entries, at most %d", ErrTooLarge, name, len(z.File), maxZipEntries)
	}
	if !slices.ContainsFunc(z.File, func(e *zip.File) bool { return strings.HasSuffix(e.Name, ".npy") }) {
		return checkImages(ctx, &images{files: z, name: name})
	}
	return checkArrays(ctx, f, z, name)
}

// checkArrays looks at every array of an .npz. Those of a kind that no model
// takes are let pass while there are others: a data set may carry its notes.
func checkArrays(ctx context.Context, f file, z *zip.Reader, name string) (Facts, error) {
	rows := map[string]int{}
	var label *npyHeader
	var skipped error
	for _, e := range z.File {
		key, ok := strings.CutSuffix(e.Name, ".npy")
		if !ok {
			continue
		}
		if _, twice := rows[key]; twice {
			return Facts{}, fmt.Errorf("%s: %w: two arrays are called %.40q", name, ErrFormat, key)
		}
		c, err := zipColumn(f, e, key)
		if err == nil {
			rows[key] = c.rows()
			if slices.Contains(labelArrays, key) {
				label = c.npyHeader
			}
			c.close()
		} else if err = fmt.Errorf("%s: array %.40q: %w", name, key, err); !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrMismatch) {
			return Facts{}, err
		} else if skipped == nil {
			skipped = err
		}
		if err := readEntry(ctx, e); err != nil {
			return Facts{}, fmt.Errorf("%s: array %.40q: %w", name, key, err)
		}
	}
	var facts Facts
	inputs, first := 0, ""
	for key, n := range rows {
		if slices.Contains(labelArrays, key) {
			continue
		}
		if inputs++; inputs == 1 {
			facts.Samples, first = n, key
		} else if n != facts.Samples { // which ones belong together a model says
			facts.Samples, first = 0, ""
			break
		}
	}
	switch {
	case inputs == 0 && skipped != nil:
		return Facts{}, skipped
	case inputs == 0:
		return Facts{}, fmt.Errorf("%w: %s has no array but labels", ErrEmpty, name)
	case first != "" && facts.Samples == 0:
		return Facts{}, fmt.Errorf("%w: %s: array %.40q has no rows", ErrEmpty, name, first)
	case label == nil:
		return facts, nil
	case label.rowLen != 1 || !isInteger(label.dtype):
		return Facts{}, fmt.Errorf("%s: %w: the labels are %v, expected one integer a sample ([n], INT64)", name, ErrLabel, label)
	case first != "" && label.rows() != facts.Samples:
		return Facts{}, fmt.Errorf("%s: %w: there are %d labels for %d samples", name, ErrLabel, label.rows(), facts.Samples)
	}
	facts.Labelled = true
	return facts, nil
}

// readEntry reads an archive's entry to its end, where its checksum is compared.
func readEntry(ctx context.Context, e *zip.File) error {
	r, err := e.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	defer r.Close()
	size := e.UncompressedSize64
	n, err := io.Copy(io.Discard, io.LimitReader(ctxReader{ctx, r}, int64(min(size, 1<<62))+1))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%w: it is damaged or cut off (%w); write the file again", ErrFormat, err)
	case uint64(n) != size:
		return fmt.Errorf("%w: it unpacks to other than the %d bytes it declares", ErrFormat, size)
	}
	return nil
}

// ctxReader stops when ctx ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func checkImages(ctx context.Context, s *images) (Facts, error) {
	if err := s.list(); err != nil {
		return Facts{}, err
	}
	if err := s.classes(); err != nil {
		return Facts{}, err
	}
	whole, pixels := map[int]bool{}, 0
	order := choose(len(s.items), 0, checkedImages)
	for _, i := range order {
		whole[i] = true
	}
	for i, it := range s.items {
		if err := ctx.Err(); err != nil {
			return Facts{}, context.Cause(ctx)
		}
		if (order == nil || whole[i]) && pixels < checkedPixels {
			b, err := s.bytes(it.path)
			if err != nil {
				return Facts{}, err
			}
			im, err := vision.Decode(b)
			if err != nil {
				return Facts{}, s.imageError(it.path, err)
			}
			pixels += im.Width * im.Height
			continue
		}
		f, err := s.files.Open(it.path)
		if err != nil {
			return Facts{}, fmt.Errorf("%w: %s: %q cannot be opened", ErrFormat, s.name, it.path)
		}
		err = vision.CheckHeader(f)
		_ = f.Close()
		if err != nil {
			return Facts{}, s.imageError(it.path, err)
		}
	}
	return Facts{Samples: len(s.items), Labelled: s.labelled()}, nil
}
