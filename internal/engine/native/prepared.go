package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// A prepared model is a packed one in a folder that its user names after the
// contents of the model's files (engine.Options.Prepared):
//
//	FOLDER/model.onnx, FOLDER/model.onnx.data
//	FOLDER/stamp.json                          what it was made for, and sums
//	FOLDER.lock                                held shared while a model is
//	                                           opened, else while it is made
//	FOLDER.new, FOLDER.old                     on the way in and out
//
// It is a cache: whatever is wrong with it, it is made anew, and where it cannot
// be kept the model is packed for this one session.

const (
	stampFile = "stamp.json"
	// maxStamp bounds what is read of a stamp.
	maxStamp = 64 << 10
	// stampFormat changes with the files' meaning.
	stampFormat = 1
	// sumBlock is how much of a file is summed up in one piece, and sumThreads
	// by how many threads.
	sumBlock   = 4 << 20
	sumThreads = 4
)

// errStale: a prepared model is absent, damaged, or made for something else.
var errStale = errors.New("no prepared model that fits")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stamp is what lies beside a prepared model.
type stamp struct {
	Format int    `json:"format"`
	For    string `json:"for"`   // the kernels
	Build  string `json:"build"` // of the program that rewrote it
	// Files are the model and its data, which a small model does without.
	Files []stampedFile `json:"files"`
}

type stampedFile struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	// CRC32C has one checksum for each sumBlock.
	CRC32C []uint32 `json:"crc32c"`
}

// build is the revision of this program: another one may rewrite models
// otherwise.
var build = sync.OnceValue(func() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	s := b.Main.Version
	for _, kv := range b.Settings {
		if kv.Key == "vcs.revision" || kv.Key == "vcs.modified" {
			s += " " + kv.Value
		}
	}
	return s
})

// files returns the paths of a prepared model and of its data.
func files(folder, path string) [2]string {
	model := filepath.Join(folder, filepath.Base(path))
	return [2]string{model, model + ".data"}
}

// openPrepared opens the prepared model of the one at path, nil when there is
// none that fits.
func (e *Engine) openPrepared(ctx context.Context, path string, o engine.Options) engine.Session {
	if _, err := os.Lstat(o.Prepared); err != nil {
		return nil
	}
	// In a folder that nobody can write to there is nobody to wait for.
	lock, err := lockfile.SharedWait(o.Prepared + ".lock")
	if err == nil {
		defer lock.Release()
	}
	return e.tryPrepared(ctx, path, o)
}

func (e *Engine) tryPrepared(ctx context.Context, path string, o engine.Options) engine.Session {
	if e.checkPrepared(o.Prepared, path) != nil {
		return nil
	}
	s, err := e.Engine.OpenFile(ctx, files(o.Prepared, path)[0], o)
	if err != nil {
		return nil // whatever it is, the model itself opens or says so
	}
	return s
}

// prepare makes the prepared model of m, which is the native one at path, and
// opens it. nil: it could not be kept, and m is as it was.
func (e *Engine) prepare(ctx context.Context, m *graph.Model, path string, o engine.Options, threads int) engine.Session {
	lock, err := lockfile.ExclusiveWait(o.Prepared + ".lock")
	if err != nil {
		return nil
	}
	defer lock.Release()
	if s := e.tryPrepared(ctx, path, o); s != nil { // another process was first
		return s
	}
	fresh, old := o.Prepared+".new", o.Prepared+".old"
	defer os.RemoveAll(fresh)
	if os.RemoveAll(fresh) != nil || os.RemoveAll(old) != nil || os.Mkdir(fresh, 0o755) != nil {
		return nil
	}
	if n, err := e.pack(ctx, m.Clone(), files(fresh, path)[0], threads, onnx.SaveOptions{External: true}); err != nil || n == 0 {
		return nil
	}
	if e.writeStamp(fresh, path) != nil {
		return nil
	}
	if err := os.Rename(o.Prepared, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if os.Rename(fresh, o.Prepared) != nil {
		return nil
	}
	_ = os.RemoveAll(old) // else whoever comes next
	m.Unload()
	return e.tryPrepared(ctx, path, o)
}

func (e *Engine) writeStamp(folder, path string) error {
	s := stamp{Format: stampFormat, For: e.packedFor(), Build: build()}
	for i, name := range files(folder, path) {
		st, err := os.Stat(name)
		if i > 0 && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		sums, err := checksums(name, st.Size())
		if err != nil {
			return err
		}
		s.Files = append(s.Files, stampedFile{filepath.Base(name), st.Size(), sums})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(folder, stampFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// checkPrepared returns errStale unless what lies in folder is whole, was made
// for these kernels by this program, and belongs to who runs it or to the owner
// of the model.
func (e *Engine) checkPrepared(folder, path string) error {
	model, err := os.Stat(path)
	if err != nil {
		return err
	}
	made := func(name string, dir bool) (fs.FileInfo, error) {
		st, err := os.Lstat(name)
		if err == nil && (st.IsDir() != dir || !dir && !st.Mode().IsRegular() || !ours(st, model)) {
			err = fmt.Errorf("%w: %s is not of this program's making", errStale, filepath.Base(name))
		}
		return st, err
	}
	label := filepath.Join(folder, stampFile)
	if _, err := made(folder, true); err != nil {
		return err
	}
	if _, err := made(label, false); err != nil {
		return err
	}
	s, err := readStamp(label)
	if err != nil {
		return err
	}
	all := files(folder, path)
	if s.Format != stampFormat || s.For != e.packedFor() || s.Build != build() || len(s.Files) < 1 || len(s.Files) > len(all) {
		return fmt.Errorf("%w: it was made for %s by %s", errStale, s.For, s.Build)
	}
	for i, f := range s.Files {
		name := all[i]
		st, err := made(name, false)
		if err != nil {
			return err
		}
		if f.Name != filepath.Base(name) || f.Bytes != st.Size() || int64(len(f.CRC32C)) != blocks(f.Bytes) {
			return fmt.Errorf("%w: %s has another size", errStale, filepath.Base(name))
		}
		sums, err := checksums(name, f.Bytes)
		if err != nil {
			return err
		}
		for k := range sums {
			if sums[k] != f.CRC32C[k] {
				return fmt.Errorf("%w: %s is damaged", errStale, filepath.Base(name))
			}
		}
	}
	return nil
}

func readStamp(path string) (s stamp, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStamp+1))
	if err != nil {
		return s, err
	}
	if len(b) > maxStamp {
		return s, fmt.Errorf("%w: its stamp passes %d bytes", errStale, maxStamp)
	}
	return s, json.Unmarshal(b, &s)
}

// ours reports whether st, which others cannot write to, belongs to this process
// or to the owner of the model.
func ours(st, model fs.FileInfo) bool {
	const othersWrite = 0o022
	a, ok1 := st.Sys().(*syscall.Stat_t)
	b, ok2 := model.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && st.Mode().Perm()&othersWrite == 0 && (int(a.Uid) == os.Geteuid() || a.Uid == b.Uid)
}

func blocks(size int64) int64 { return (size + sumBlock - 1) / sumBlock }

// checksums returns the CRC-32C of each block of the file, which has size bytes.
// It reads rather than maps: a file that is cut meanwhile is an error then.
func checksums(path string, size int64) ([]uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sums := make([]uint32, blocks(size))
	errs := make([]error, sumThreads)
	var wg sync.WaitGroup
	for t := range sumThreads {
		wg.Go(func() {
			buf := make([]byte, 256<<10) // stays in the second-level cache
			for k := t; k < len(sums); k += sumThreads {
				for at, end := int64(k)*sumBlock, min(size, int64(k+1)*sumBlock); at < end; {
					n, err := f.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
					sums[k] = crc32.Update(sums[k], castagnoli, buf[:n])
					at += int64(n)
					if err != nil && at < end {
						errs[t] = err
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return sums, errors.Join(errs...)
}
