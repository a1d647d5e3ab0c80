package capture

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/registry/disk"
)

const (
	// tick is how often what was taken is written: what a kill may lose.
	tick = 500 * time.Millisecond
	// sweepTicks is how many ticks pass between two looks for ends; counters are
	// written then.
	sweepTicks = 8
)

// write runs until Close: it seals and writes what was taken, many at once.
func (s *Store) write() {
	defer close(s.done)
	t := time.NewTicker(tick)
	defer t.Stop()
	for n := 0; ; {
		select {
		case <-s.full:
			s.flush()
		case now := <-t.C:
			s.flush()
			if n++; n%sweepTicks == 0 {
				s.sweep(now)
			}
		case <-s.quit:
			s.flush()
			return
		}
	}
}

// flush writes what waits. A disk that fails ends the capture: requests go on.
func (s *Store) flush() {
	batches := map[*capture][]taken{}
	for waits := true; waits; {
		select {
		case x := <-s.queue:
			batches[x.c] = append(batches[x.c], x)
		default:
			waits = false
		}
	}
	for c, batch := range batches {
		c.keep(batch)
		for _, x := range batch {
			s.pending.Add(-int64(len(x.bytes)))
		}
	}
}

func (c *capture) keep(batch []taken) {
	c.io.Lock()
	defer c.io.Unlock()
	if c.deleted {
		return
	}
	if err := c.append(batch); err != nil {
		c.stop(time.Now(), fmt.Sprintf("samples could not be written: %v", err))
	}
}

// sweep stops what has run its time, deletes what was kept long enough, and
// writes counters that have changed.
func (s *Store) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for model, c := range s.all {
		st := c.status()
		switch {
		case st.State == Running && now.After(st.Ends):
			c.stop(now, "its time is over")
		case st.State == Stopped && now.After(st.Deletes):
			_ = s.deleteLocked(model) // out of sight at least; the next start removes the rest
			continue
		}
		if c.box != nil { // one of another key stays as it is
			_ = c.save(false) // a full disk: the next tick tries again
		}
	}
	s.publish()
}

// save writes the manifest when something has changed, or always.
func (c *capture) save(always bool) error {
	c.io.Lock()
	defer c.io.Unlock()
	c.mu.Lock()
	if c.deleted || !c.changed && !always {
		c.mu.Unlock()
		return nil
	}
	c.changed = false
	b, err := json.MarshalIndent(manifest{c.keyID, c.salt, c.st}, "", "  ")
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("captured inputs: %w", err)
	}
	if err := replace(filepath.Join(c.dir, manifestName), append(b, '\n'), always); err != nil {
		c.mu.Lock()
		c.changed = true
		c.mu.Unlock()
		return fmt.Errorf("captured inputs: %w", err)
	}
	return nil
}

// replace writes a file beside path and renames it: a reader, and the next
// start after a kill, sees the old one or the new one, whole. Unless durable is
// set, a power failure may lose it; its seal then tells.
func replace(path string, b []byte, durable bool) error {
	f := atomicfile.File{Path: path, Temp: hidden + "tmp-*", Fleeting: !durable}
	return noPath(f.WriteBytes(b))
}

// roomLeft stays free on the disk when a capture is filled.
const roomLeft = 64 << 20

// checkRoom refuses a capture that the disk cannot hold.
func checkRoom(dir string, n int64) error {
	free, _, ok := disk.Space(dir)
	if ok && uint64(n)+roomLeft > free {
		return fmt.Errorf("%w: max_bytes is %d, the disk has %d free", ErrSettings, n, free)
	}
	return nil
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

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}
