package data

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zip"

	"github.com/fewbit/fewbit/internal/rollout/capture"
)

// Kinds of data sets, as Dataset.Kind returns them.
const (
	kindNPZ    = "npz"
	kindNPY    = "npy"
	kindJSONL  = "jsonl"
	kindImages = "images"
	kindZip    = "zip" // of arrays or of images
	// kindCaptured is a snapshot of captured inputs.
	kindCaptured = "captured"
)

// maxZipEntries bounds the entries of an archive.
const maxZipEntries = 1 << 20

// sniffBytes is how much of a file is looked at to tell its kind.
const sniffBytes = 512

func openSource(path string, o Options) (source, error) {
	name := filepath.Base(path)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w: %s does not exist", ErrNotFound, name)
	case err != nil:
		return nil, fmt.Errorf("%w: %s cannot be read", ErrNotFound, name)
	case info.IsDir():
		return openImageFolder(path, o)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrUnsupported, name)
	case info.Size() == 0:
		return nil, fmt.Errorf("%w: %s has 0 bytes", ErrEmpty, name)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be opened", ErrNotFound, name)
	}
	src, err := openFile(diskFile{f}, info.Size(), name, o)
	if err != nil {
		f.Close()
		return nil, err
	}
	return src, nil
}

// file is what data sets are read from: an open file.
type file interface {
	io.ReaderAt
	io.Closer
}

// diskFile is a file whose errors do not name its path.
type diskFile struct{ f *os.File }

func (d diskFile) Close() error { return d.f.Close() }

func (d diskFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := d.f.ReadAt(b, off)
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return n, err
}

// openFile takes f over when it succeeds.
func openFile(f file, size int64, name string, o Options) (source, error) {
	head := make([]byte, sniffBytes)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %s cannot be read", ErrFormat, name)
	}
	head = head[:n]
	switch kindOf(head) {
	case kindNPY:
		return openNPY(f, size, name, o)
	case kindZip:
		return openZip(f, size, name, o)
	case kindJSONL:
		return openJSONL(f, size, name, o)
	case kindCaptured:
		return openCaptured(f, size, name, o)
	}
	want := "an .npz, .npy, .jsonl, .zip of images or a folder of images"
	if ext := strings.ToLower(filepath.Ext(name)); ext == ".npz" || ext == ".npy" || ext == ".jsonl" || ext == ".zip" {
		want = "what its name says"
	}
	return nil, fmt.Errorf("%w: %s is not %s (it begins with %q)", ErrFormat, name, want, head[:min(len(head), 8)])
}

// kindOf tells the kind of a file by its first bytes, "" when it is none.
func kindOf(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte(npyMagic)):
		return kindNPY
	case bytes.HasPrefix(head, []byte("PK\x03\x04")), bytes.HasPrefix(head, []byte("PK\x05\x06")):
		return kindZip
	case bytes.HasPrefix(head, []byte(capture.Magic)):
		return kindCaptured
	case looksJSON(head):
		return kindJSONL
	}
	return ""
}

func looksJSON(head []byte) bool {
	head = bytes.TrimPrefix(head, []byte("\xef\xbb\xbf"))
	head = bytes.TrimLeft(head, " \t\r\n")
	return len(head) > 0 && head[0] == '{'
}

// openZip tells an .npz from an archive of images.
func openZip(f file, size int64, name string, o Options) (source, error) {
	z, err := zip.NewReader(f, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not a whole zip archive (%w)", ErrFormat, name, err)
	}
	if len(z.File) > maxZipEntries {
		return nil, fmt.Errorf("%w: %s has %d entries, at most %d", ErrTooLarge, name, len(z.File), maxZipEntries)
	}
	arrays, images := 0, 0
	for _, e := range z.File {
		switch {
		case strings.HasSuffix(e.Name, ".npy"):
			arrays++
		case isImageName(e.Name):
			images++
		}
	}
	switch {
	case arrays > 0:
		return openNPZ(f, z, name, o)
	case images > 0:
		return openImageZip(f, z, name, o)
	case len(z.File) == 0:
		return nil, fmt.Errorf("%w: the archive %s has no entries", ErrEmpty, name)
	}
	return nil, fmt.Errorf("%w: the archive %s holds neither arrays (.npy) nor images (.jpg, .png, .webp)", ErrFormat, name)
}
