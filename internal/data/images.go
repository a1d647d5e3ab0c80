package data

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zip"

	"github.com/fewbit/fewbit/internal/task"
	"github.com/fewbit/fewbit/internal/task/vision"
)

// Limits of a set of images.
const (
	maxImages   = 1 << 20
	maxCSVBytes = 64 << 20
	maxDepth    = 16 // folders within folders
)

// csvName is the file that gives the classes of images: lines of file,label.
const csvName = "labels.csv"

// images is the source of folders and archives of images.
type images struct {
	files   fs.FS
	closer  io.Closer // of an archive
	name    string
	prepare *vision.Preparer
	items   []imageItem // sorted by path
	names   []string
	hasCSV  bool
}

// imageItem is an image and its class (-1: none).
type imageItem struct {
	path  string
	class int32
}

var _ source = (*images)(nil)

// isImageName reports whether a path has the extension of an image that is read.
func isImageName(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".jpg", ".jpeg", ".png", ".webp":
		return true
	}
	return false
}

func openImageFolder(dir string, o Options) (source, error) {
	return newImages(os.DirFS(dir), nil, filepath.Base(dir), o)
}

func openImageZip(f file, z *zip.Reader, name string, o Options) (source, error) {
	return newImages(z, f, name, o)
}

func newImages(files fs.FS, closer io.Closer, name string, o Options) (source, error) {
	s := &images{files: files, closer: closer, name: name}
	var err error
	if s.names, err = modelLabels(o); err != nil {
		return nil, err
	}
	if err := s.list(); err != nil {
		return nil, err
	}
	if s.prepare, err = vision.New(o.Spec, o.ModelDir); errors.Is(err, vision.ErrNotImage) {
		return nil, fmt.Errorf("%s: %w: it holds images, but %w", name, ErrMismatch, err)
	} else if err != nil {
		return nil, err
	}
	if err := s.classes(); err != nil {
		return nil, err
	}
	return s, nil
}

// classes finds the class of every image.
func (s *images) classes() error {
	b, err := s.readCSV()
	switch {
	case err != nil:
		return err
	case b != nil:
		return s.classesByCSV(b)
	}
	return s.classesByFolder()
}

// list finds the images.
func (s *images) list() error {
	err := fs.WalkDir(s.files, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%w: %s: %q cannot be listed", ErrFormat, s.name, p)
		}
		base := path.Base(p)
		hidden := p != "." && (strings.HasPrefix(base, ".") || base == "__MACOSX")
		if d.IsDir() {
			if hidden || strings.Count(p, "/") >= maxDepth {
				return fs.SkipDir
			}
			return nil
		}
		if hidden || !isImageName(p) {
			return nil
		}
		if !d.Type().IsRegular() { // a link to a file is as good as the file
			info, err := fs.Stat(s.files, p)
			if broken := err != nil || !info.Mode().IsRegular(); broken {
				return nil
			}
		}
		if len(s.items) == maxImages {
			return fmt.Errorf("%w: %s has more than %d images", ErrTooLarge, s.name, maxImages)
		}
		s.items = append(s.items, imageItem{path: p, class: -1})
		return nil
	})
	if err != nil {
		return err
	}
	if len(s.items) == 0 {
		return fmt.Errorf("%w: %s has no images (.jpg, .jpeg, .png, .webp)", ErrEmpty, s.name)
	}
	slices.SortFunc(s.items, func(a, b imageItem) int { return strings.Compare(a.path, b.path) })
	return nil
}

// root returns the folder that holds everything: archives often wrap their
// contents in one. It is "." unless all images lie at least two folders deep
// below the same one, or labels.csv lies in it.
func (s *images) root() string {
	top, _, ok := strings.Cut(s.items[0].path, "/")
	if !ok {
		return "."
	}
	for _, it := range s.items {
		rest, inside := strings.CutPrefix(it.path, top+"/")
		if !inside {
			return "."
		}
		if !strings.Contains(rest, "/") {
			if _, err := fs.Stat(s.files, path.Join(top, csvName)); err == nil {
				return top
			}
			return "."
		}
	}
	return top
}

// readCSV returns labels.csv, nil when there is none.
func (s *images) readCSV() ([]byte, error) {
	for _, dir := range []string{".", s.root()} {
		f, err := s.files.Open(path.Join(dir, csvName))
		if err != nil {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(f, maxCSVBytes+1))
		_ = f.Close()
		if err != nil || len(b) > maxCSVBytes {
			return nil, fmt.Errorf("%w: %s: %s cannot be read or has more than %d bytes", ErrFormat, s.name, csvName, maxCSVBytes)
		}
		s.hasCSV = true
		return b, nil
	}
	return nil, nil
}

// classesByCSV reads lines of file,label. Only the listed images are used; a
// first line "file,label" (or "filename", "path", "image") is a header.
func (s *images) classesByCSV(b []byte) error {
	root := s.root()
	at := make(map[string]int, len(s.items))
	for i, it := range s.items {
		at[it.path] = i
	}
	fail := func(line int, kind error, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s line %d: %s", kind, s.name, csvName, line, fmt.Sprintf(format, args...))
	}
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(string(b), "\ufeff")))
	r.FieldsPerRecord = -1
	r.TrimLeadingSpace = true
	r.ReuseRecord = true
	labels := make([]string, len(s.items))
	used := make([]bool, len(s.items))
	for first := true; ; first = false {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %s: %w", ErrFormat, s.name, csvName, err)
		}
		line, _ := r.FieldPos(0)
		if len(rec) != 2 {
			return fail(line, ErrFormat, "%d fields, expected file,label", len(rec))
		}
		file, label := strings.TrimSpace(rec[0]), strings.TrimSpace(rec[1])
		if first && strings.EqualFold(label, "label") {
			continue
		}
		p := path.Join(root, filepath.ToSlash(file))
		i, ok := at[p]
		if !ok {
			i, ok = at[path.Clean(file)]
		}
		if !ok {
			return fail(line, ErrLabel, "there is no image %.80q", file)
		}
		if used[i] {
			return fail(line, ErrLabel, "the image %.80q stands twice", file)
		}
		if label == "" {
			return fail(line, ErrLabel, "no label for %.80q", file)
		}
		used[i], labels[i] = true, label
	}
	kept := s.items[:0]
	var keptLabels []string
	for i, it := range s.items {
		if used[i] {
			kept = append(kept, it)
			keptLabels = append(keptLabels, labels[i])
		}
	}
	if len(kept) == 0 {
		return fmt.Errorf("%w: %s: %s names no image", ErrEmpty, s.name, csvName)
	}
	s.items = kept
	return s.number(keptLabels)
}

// classesByFolder takes the first folder below the root as the class. Images
// directly in the root, or all in one folder that labels.txt does not name,
// have no class.
func (s *images) classesByFolder() error {
	root := s.root()
	labels := make([]string, len(s.items))
	flat, folders := "", map[string]bool{}
	for i, it := range s.items {
		rel := it.path
		if root != "." {
			rel = strings.TrimPrefix(rel, root+"/")
		}
		dir, _, ok := strings.Cut(rel, "/")
		if !ok {
			flat = rel
			continue
		}
		labels[i] = dir
		folders[dir] = true
	}
	switch {
	case len(folders) == 0:
		return nil
	case flat != "":
		return fmt.Errorf("%w: %s has images in folders and also outside (%.80q); sort all into folders, or none", ErrLabel, s.name, flat)
	case len(folders) == 1 && !slices.Contains(s.names, labels[0]):
		return nil
	}
	return s.number(labels)
}

// number turns the labels of all items into class numbers: names of
// labels.txt, or whole numbers, or new names in sorted order.
func (s *images) number(labels []string) error {
	if s.names != nil {
		at := make(map[string]int, len(s.names))
		for i, n := range s.names {
			at[n] = i
		}
		for i, l := range labels {
			id, ok := at[l]
			if !ok {
				n, err := strconv.Atoi(l)
				if err != nil || n < 0 || n >= len(s.names) {
					return fmt.Errorf("%w: %s: %.80q (of %q) is not in the model's %s", ErrLabel, s.name, l, s.items[i].path, task.LabelsFile)
				}
				id = n
			}
			s.items[i].class = int32(id)
		}
		return nil
	}
	numbers := true
	for _, l := range labels {
		n, err := strconv.ParseInt(l, 10, 32)
		numbers = numbers && err == nil && n >= 0
	}
	if numbers {
		for i, l := range labels {
			n, _ := strconv.ParseInt(l, 10, 32)
			s.items[i].class = int32(n)
		}
		return nil
	}
	s.names = slices.Compact(slices.Sorted(slices.Values(labels)))
	for i, l := range labels {
		id, _ := slices.BinarySearch(s.names, l)
		s.items[i].class = int32(id)
	}
	return nil
}

func (s *images) size() int            { return len(s.items) }
func (s *images) kind() string         { return kindImages }
func (s *images) labelNames() []string { return s.names }
func (s *images) labelled() bool       { return s.items[0].class >= 0 }
func (s *images) rewind() error        { return nil }

func (s *images) close() error {
	if s.closer == nil {
		return nil
	}
	return s.closer.Close()
}

// bytes reads the image at path, at most one byte more than an image may have.
func (s *images) bytes(path string) ([]byte, error) {
	f, err := s.files.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %q cannot be opened", ErrFormat, s.name, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, vision.MaxBytes+1))
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %q is damaged or cannot be read", ErrFormat, s.name, path)
	}
	return b, nil
}

// imageError gives an error of the image at path the identity it has here.
func (s *images) imageError(path string, err error) error {
	kind := ErrMismatch
	switch {
	case errors.Is(err, vision.ErrDecode):
		kind = ErrFormat
	case errors.Is(err, vision.ErrTooLarge):
		kind = ErrTooLarge
	}
	return fmt.Errorf("%s: %q: %w: %w", s.name, path, kind, err)
}

func (s *images) read(_ context.Context, i int) (Sample, error) {
	it := s.items[i]
	b, err := s.bytes(it.path)
	if err != nil {
		return Sample{}, err
	}
	feeds, err := s.prepare.Feeds(b)
	if err != nil {
		return Sample{}, s.imageError(it.path, err)
	}
	smp := Sample{Feeds: feeds, ID: it.path}
	if it.class >= 0 {
		smp.Label, smp.HasLabel = int(it.class), true
	}
	return smp, nil
}
