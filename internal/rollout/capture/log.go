package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// The samples of a capture lie in one file, in the order in which they came:
//
//	u32   length of the rest
//	u32   slot of the reservoir: a later one replaces an earlier one
//	...   the sealed record
//
// It is only appended to, many samples in one write: making a file for each
// would cost a hundred times as much. What a kill leaves of a write is cut off
// by the next start. When most of it is of replaced samples it is written anew.

const logName = "samples"

// frameHead is the length and the slot in front of a sealed record.
const frameHead = 8

// place says where a sealed record lies in the log.
type place struct {
	at   int64
	size int
}

// compactFrom is how many bytes of replaced samples are borne whatever they are
// a share of.
const compactFrom = 1 << 20

// openLog opens a capture's log for appending, once. c.io is held.
func (c *capture) openLog() error {
	if c.log != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(c.dir, logName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return noPath(err)
	}
	c.log = f
	return nil
}

// closeLog is its end. c.io is held.
func (c *capture) closeLog() {
	if c.log != nil {
		_ = c.log.Close() // every write has been looked at
		c.log = nil
	}
}

// scan reads where the samples lie, and cuts off what a kill left half written.
func (c *capture) scan() error {
	f, err := os.OpenFile(filepath.Join(c.dir, logName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return noPath(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return noPath(err)
	}
	r := bufio.NewReaderSize(f, 1<<16)
	end := int64(0)
	for {
		var head [frameHead]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			break
		}
		n, slot := int64(binary.LittleEndian.Uint32(head[:])), binary.LittleEndian.Uint32(head[4:])
		if n < 4 || n > maxFrame || slot >= MaxSamples || end+4+n > info.Size() {
			break
		}
		if _, err := r.Discard(int(n - 4)); err != nil {
			break
		}
		c.place(int(slot), place{end + frameHead, int(n - 4)})
		end += 4 + n
	}
	c.end = end
	if end < info.Size() {
		return noPath(f.Truncate(end))
	}
	return nil
}

// place puts a sample into the index. c.mu is held, or nobody else knows c.
func (c *capture) place(slot int, p place) {
	c.st.Bytes += int64(p.size) - int64(c.places[slot].size)
	c.places[slot] = p
	c.st.Samples = len(c.places)
	c.filled = max(c.filled, slot+1)
}

// append writes what was taken in one go. Whole samples or nothing stay when it
// fails. c.io is held.
func (c *capture) append(batch []taken) error {
	if err := c.openLog(); err != nil {
		return err
	}
	c.mu.Lock()
	bytes, limit := c.st.Bytes, c.st.Settings.MaxBytes
	had := map[int]int{} // what the slots of this batch hold by then
	for _, x := range batch {
		had[x.slot] = c.places[x.slot].size
	}
	c.mu.Unlock()
	var out []byte
	var slots []int
	var places []place
	skipped := int64(0)
	for _, x := range batch {
		size := len(x.bytes) + c.box.overhead()
		if bytes+int64(size-had[x.slot]) > limit {
			skipped++
			continue
		}
		bytes += int64(size - had[x.slot])
		had[x.slot] = size
		out = binary.LittleEndian.AppendUint32(out, uint32(size+4))
		out = binary.LittleEndian.AppendUint32(out, uint32(x.slot))
		slots, places = append(slots, x.slot), append(places, place{c.end + int64(len(out)), size})
		out = c.box.seal(out, x.bytes, sealSample)
	}
	if _, err := c.log.WriteAt(out, c.end); err != nil {
		_ = c.log.Truncate(c.end) // the next start would do it
		return noPath(err)
	}
	c.end += int64(len(out))
	c.mu.Lock()
	for i, slot := range slots {
		c.place(slot, places[i])
	}
	c.st.Skipped += skipped
	c.changed = true
	dead := c.end - c.st.Bytes - int64(len(c.places))*frameHead
	compact := dead > compactFrom && dead > c.st.Bytes
	c.mu.Unlock()
	if compact {
		return c.compact()
	}
	return nil
}

// compact writes the log anew, without replaced samples. c.io is held.
func (c *capture) compact() (err error) {
	f, err := os.CreateTemp(c.dir, hidden+"log-*")
	if err != nil {
		return noPath(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	c.mu.Lock()
	slots := make([]int, 0, len(c.places))
	for slot := range c.places {
		slots = append(slots, slot)
	}
	c.mu.Unlock()
	slices.SortFunc(slots, func(a, b int) int { return int(c.places[a].at - c.places[b].at) })
	out := bufio.NewWriterSize(f, 1<<20)
	moved := make([]place, len(slots))
	end := int64(0)
	for i, slot := range slots { // places change under c.io only
		p := c.places[slot]
		b := make([]byte, frameHead+p.size)
		if _, err := c.log.ReadAt(b, p.at-frameHead); err != nil {
			return noPath(err)
		}
		if _, err := out.Write(b); err != nil {
			return noPath(err)
		}
		moved[i] = place{end + frameHead, p.size}
		end += int64(len(b))
	}
	if err := out.Flush(); err != nil {
		return noPath(err)
	}
	if err := f.Sync(); err != nil { // before the old one goes
		return noPath(err)
	}
	if err := os.Rename(f.Name(), filepath.Join(c.dir, logName)); err != nil {
		return noPath(err)
	}
	c.closeLog()
	c.log, c.end = f, end
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, slot := range slots {
		c.places[slot] = moved[i]
	}
	return nil
}

// view returns the log as it is now, for reading, and where the samples lie in
// it. Appending and compacting do not disturb it. Close the file.
func (c *capture) view() (*os.File, []place, error) {
	c.io.Lock()
	defer c.io.Unlock()
	f, err := os.Open(filepath.Join(c.dir, logName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w of model %s yet", ErrEmpty, c.model)
	}
	if err != nil {
		return nil, nil, noPath(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	slots := make([]int, 0, len(c.places))
	for slot := range c.places {
		slots = append(slots, slot)
	}
	slices.Sort(slots)
	places := make([]place, len(slots))
	for i, slot := range slots {
		places[i] = c.places[slot]
	}
	return f, places, nil
}
