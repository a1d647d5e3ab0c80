package pipeline

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/bare"
)

// stage is a folder in which a result is made before it is published: on the
// destination's file system, so that publishing is a rename.
type stage struct {
	dir       *scratchDir // nil when nothing is published
	path, out string
}

// newStage prepares for publishing to out; with out "" the result stays in
// scratch and is never published.
func newStage(out, scratch string) (*stage, error) {
	if out == "" {
		return &stage{path: filepath.Join(scratch, "result.onnx")}, nil
	}
	dir, err := newScratch(filepath.Dir(out), stagePrefix)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", filepath.Base(out), err)
	}
	return &stage{dir: dir, path: filepath.Join(dir.path, filepath.Base(out)), out: out}, nil
}

func (s *stage) discard() {
	if s.dir != nil {
		_ = s.dir.remove() // the next process does it
	}
}

// publish moves the result to its place: its external data first, so that the
// model, once visible, is whole.
func (s *stage) publish() error {
	for _, suffix := range []string{".data", ""} {
		if _, err := os.Stat(s.path + suffix); suffix != "" && os.IsNotExist(err) {
			continue
		}
		if err := os.Rename(s.path+suffix, s.out+suffix); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Base(s.out), bare.Error(err))
		}
	}
	_ = atomicfile.SyncDir(filepath.Dir(s.out)) // the result is in its place all the same
	return nil
}
