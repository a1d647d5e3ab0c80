package search

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
	"github.com/fewbit/fewbit/internal/report"
)

// Errors of a journal.
var (
	// ErrJournal: the file is no journal of a search.
	ErrJournal = errors.New("not the journal of a search")
	// ErrOther: the journal is of a search with another model, data or options.
	ErrOther = errors.New("the journal is of another search")
	// ErrBusy: another process searches here.
	ErrBusy = errors.New("another search runs here")
)

const (
	// journalMark opens every journal.
	journalMark = "fewbit.search-journal/1"
	// maxJournal bounds the bytes of a journal that is read, maxEntry those of one line.
	maxJournal = 64 << 20
	maxEntry   = 4 << 20
	maxEntries = 10_000
)

// Head says what a journal's search is about.
type Head struct {
	Mark string `json:"journal"`
	// Key is a digest of model, data and options.
	Key string `json:"key"`
	// First samples give a first look, Samples judge.
	First   int    `json:"first"`
	Samples int    `json:"samples"`
	Metric  string `json:"metric"`
}

// entry is one line after the head.
type entry struct {
	Trial *report.Trial `json:"trial,omitempty"`
	Units *unitsEntry   `json:"units,omitempty"`
}

type unitsEntry struct {
	Target string `json:"target"`
	Units  []Unit `json:"units"`
}

// Journal is the file to which everything that a search learns is appended. The
// lock that it holds goes with the process.
type Journal struct {
	Head   Head
	Trials map[string]report.Trial // by key, of earlier starts too
	Units  map[string][]Unit       // by target
	f      *os.File
	lock   *lockfile.Lock
}

// OpenJournal opens the journal at path, or creates it when it is not there or,
// with fresh, whatever is there. A journal of another key is ErrOther.
func OpenJournal(path, key string, fresh bool) (j *Journal, err error) {
	name := filepath.Base(path)
	lock, err := lockfile.Exclusive(path)
	switch {
	case errors.Is(err, lockfile.ErrLocked):
		return nil, fmt.Errorf("%s: %w: wait for it, or give another -o", name, ErrBusy)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, bare.Error(err))
	}
	defer func() {
		if err != nil {
			lock.Release()
		}
	}()
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, bare.Error(err))
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if fresh {
		if err := f.Truncate(0); err != nil {
			return nil, fmt.Errorf("%s: %w", name, bare.Error(err))
		}
	}
	j = &Journal{f: f, lock: lock}
	whole, err := j.read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if j.Head.Mark != "" && j.Head.Key != key {
		return nil, fmt.Errorf("%s: %w (other model, data or options): start again with --restart, or give another -o", name, ErrOther)
	}
	// A line that was being written when the process died is cut off.
	if err := f.Truncate(whole); err != nil {
		return nil, fmt.Errorf("%s: %w", name, bare.Error(err))
	}
	if _, err := f.Seek(whole, io.SeekStart); err != nil {
		return nil, fmt.Errorf("%s: %w", name, bare.Error(err))
	}
	j.Head.Key = key
	return j, nil
}

// read takes the whole lines of r and returns their bytes.
func (j *Journal) read(r io.Reader) (whole int64, err error) {
	j.Head, j.Trials, j.Units = Head{}, map[string]report.Trial{}, map[string][]Unit{}
	lines := bufio.NewReaderSize(io.LimitReader(r, maxJournal+1), 64<<10)
	for n := 0; ; n++ {
		line, err := readLine(lines)
		switch {
		case errors.Is(err, io.EOF): // and what stands there is not whole
			if n == 0 && len(line) > 0 && !bytes.HasPrefix([]byte(`{"journal":"`+journalMark), line[:min(len(line), len(journalMark))]) {
				return 0, fmt.Errorf("%w: give another -o", ErrJournal)
			}
			return whole, nil
		case err != nil:
			return whole, err
		case n > maxEntries || whole+int64(len(line)) > maxJournal:
			return whole, fmt.Errorf("%w: more than %d lines or %d MB; start again with --restart", ErrJournal, maxEntries, maxJournal>>20)
		}
		if n == 0 {
			if json.Unmarshal(line, &j.Head) != nil || j.Head.Mark != journalMark || j.Head.First < 0 || j.Head.Samples < 0 {
				j.Head = Head{}
				return 0, fmt.Errorf("%w: give another -o", ErrJournal)
			}
		} else {
			var e entry
			if err := json.Unmarshal(line, &e); err != nil {
				return whole, fmt.Errorf("%w: line %d: %v; start again with --restart", ErrJournal, n+1, err)
			}
			switch {
			case e.Trial != nil && e.Trial.Key != "":
				j.Trials[e.Trial.Key] = *e.Trial
			case e.Units != nil:
				j.Units[e.Units.Target] = e.Units.Units
			}
		}
		whole += int64(len(line))
	}
}

// readLine returns a line with its end, or what is left and io.EOF.
func readLine(r *bufio.Reader) (line []byte, err error) {
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxEntry:
			return nil, fmt.Errorf("%w: a line is longer than %d MB", ErrJournal, maxEntry>>20)
		case errors.Is(err, bufio.ErrBufferFull):
		default:
			return line, err
		}
	}
}

// Started reports whether the head stands in the file.
func (j *Journal) Started() bool { return j.Head.Mark != "" }

// Start writes the head.
func (j *Journal) Start(first, samples int) error {
	j.Head.Mark, j.Head.First, j.Head.Samples = journalMark, first, samples
	return j.append(j.Head)
}

// Add appends a trial.
func (j *Journal) Add(t report.Trial) error {
	j.Trials[t.Key] = t
	return j.append(entry{Trial: &t})
}

// AddUnits appends the order of the units.
func (j *Journal) AddUnits(target string, u []Unit) error {
	j.Units[target] = u
	return j.append(entry{Units: &unitsEntry{target, u}})
}

// append writes one line and has it on disk before it returns.
func (j *Journal) append(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = j.f.Write(append(b, '\n'))
	}
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(j.f.Name()), bare.Error(err))
	}
	return nil
}

// Close gives the journal to others.
func (j *Journal) Close() error {
	err := j.f.Close()
	j.lock.Release()
	return err
}
