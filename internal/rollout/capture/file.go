package capture

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A snapshot is a capture as one file, which jobs read and nobody changes:
//
//	Magic
//	u32, JSON  manifest: what was captured, the salt
//	u32, ...   a sealed sample, for each
//	u32, ...   sealed: how many samples there are
//
// Each part begins with its length in bytes. The last one keeps the file from
// being cut off between two samples.

// Magic begins a snapshot.
const Magic = "fewbit captured inputs 1\n"

// maxFrame bounds one part of a snapshot.
const maxFrame = MaxSampleBytes + maxHeader + 1024

// ending is the last part of a snapshot.
type ending struct {
	Samples int `json:"samples"`
}

// Snapshot writes the samples of a model, sealed as they are on disk, and says
// what they are. Errors: ErrNotFound, ErrEmpty, ErrNoKey, ErrKey.
func (s *Store) Snapshot(model string, w io.Writer) (Status, error) {
	s.mu.Lock()
	c, err := s.find(model)
	s.mu.Unlock()
	if err != nil {
		return Status{}, err
	}
	if s.key == nil {
		return Status{}, ErrNoKey
	}
	if c.box == nil {
		return Status{}, fmt.Errorf("%w: the captured inputs of model %s were sealed with another one", ErrKey, model)
	}
	log, places, err := c.view()
	if err != nil {
		return Status{}, err
	}
	defer log.Close()
	st := c.status()
	if len(places) == 0 {
		return st, fmt.Errorf("%w of model %s yet: %d rows were seen", ErrEmpty, model, st.Seen)
	}
	head, err := json.Marshal(manifest{c.keyID, c.salt, st})
	if err != nil {
		return st, fmt.Errorf("captured inputs: %w", err)
	}
	out := bufio.NewWriterSize(w, 1<<20)
	frame := func(b []byte) error {
		if _, err := out.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(b)))); err != nil {
			return err
		}
		_, err := out.Write(b)
		return err
	}
	if _, err = out.WriteString(Magic); err == nil {
		err = frame(head)
	}
	n := 0
	for _, p := range places {
		if err != nil {
			return st, noPath(err)
		}
		b := make([]byte, p.size)
		if _, rerr := log.ReadAt(b, p.at); rerr != nil {
			return st, fmt.Errorf("captured inputs: %w", noPath(rerr))
		}
		// A power failure may have left a part of a sample: it is no sample.
		if _, oerr := c.box.open(b, sealSample); oerr != nil {
			continue
		}
		n++
		err = frame(b)
	}
	if n == 0 {
		return st, fmt.Errorf("%w that can be read", ErrEmpty)
	}
	end, merr := json.Marshal(ending{n})
	if err = errors.Join(err, merr); err == nil {
		err = frame(c.box.seal(nil, end, sealEnd))
	}
	if err == nil {
		err = out.Flush()
	}
	st.Samples = n
	return st, noPath(err)
}

// Reader reads a snapshot.
type Reader struct {
	f      io.ReaderAt
	box    *box
	st     Status
	frames []part
}

// part says where a sealed sample lies.
type part struct {
	at   int64
	size int
}

// NewReader reads the index of a snapshot of size bytes and checks that it is
// whole. Errors: ErrFormat, ErrKey, ErrNoKey.
func NewReader(f io.ReaderAt, size int64, key *Key) (*Reader, error) {
	if key == nil {
		return nil, ErrNoKey
	}
	r := &Reader{f: f}
	magic := make([]byte, len(Magic))
	if _, err := f.ReadAt(magic, 0); err != nil || string(magic) != Magic {
		return nil, fmt.Errorf("%w: it does not begin as captured inputs do", ErrFormat)
	}
	var parts []part
	for at := int64(len(Magic)); at < size; {
		var n [4]byte
		if size-at < int64(len(n)) {
			return nil, fmt.Errorf("%w: it is cut off", ErrFormat)
		}
		if _, err := f.ReadAt(n[:], at); err != nil {
			return nil, fmt.Errorf("%w: it cannot be read", ErrFormat)
		}
		p := part{at + int64(len(n)), int(binary.LittleEndian.Uint32(n[:]))}
		if p.size > maxFrame || int64(p.size) > size-p.at || len(parts) > MaxSamples+2 {
			return nil, fmt.Errorf("%w: a part of %d bytes at %d of %d", ErrFormat, p.size, at, size)
		}
		parts = append(parts, p)
		at = p.at + int64(p.size)
	}
	if len(parts) < 3 {
		return nil, fmt.Errorf("%w: it has %d parts, expected a manifest, samples and an end", ErrFormat, len(parts))
	}
	head, err := r.read(parts[0])
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(head, &m); err != nil || len(m.Salt) != saltBytes {
		return nil, fmt.Errorf("%w: its manifest", ErrFormat)
	}
	if m.KeyID != key.ID() {
		return nil, fmt.Errorf("%w: the inputs were sealed with another one", ErrKey)
	}
	if r.box, err = key.box(m.Salt); err != nil {
		return nil, err
	}
	r.st, r.frames = m.Status, parts[1:len(parts)-1]
	last, err := r.read(parts[len(parts)-1])
	if err != nil {
		return nil, err
	}
	if last, err = r.box.open(last, sealEnd); err != nil {
		return nil, err
	}
	var e ending
	if err := json.Unmarshal(last, &e); err != nil || e.Samples != len(r.frames) {
		return nil, fmt.Errorf("%w: %d samples, its end says %d", ErrFormat, len(r.frames), e.Samples)
	}
	r.st.Samples = len(r.frames)
	return r, nil
}

func (r *Reader) read(p part) ([]byte, error) {
	b := make([]byte, p.size)
	if _, err := r.f.ReadAt(b, p.at); err != nil {
		return nil, fmt.Errorf("%w: it cannot be read", ErrFormat)
	}
	return b, nil
}

// Len returns the number of samples.
func (r *Reader) Len() int { return len(r.frames) }

// Status describes the capture when the snapshot was made.
func (r *Reader) Status() Status { return r.st }

// Sample returns sample i.
func (r *Reader) Sample(i int) (Sample, error) {
	b, err := r.read(r.frames[i])
	if err != nil {
		return Sample{}, err
	}
	if b, err = r.box.open(b, sealSample); err != nil {
		return Sample{}, fmt.Errorf("sample %d: %w", i, err)
	}
	s, err := decodeRecord(b)
	if err != nil {
		return Sample{}, fmt.Errorf("sample %d: %w", i, err)
	}
	return s, nil
}
