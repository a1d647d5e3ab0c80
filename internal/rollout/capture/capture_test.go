package capture

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

func testKey(t testing.TB, b byte) *Key {
	t.Helper()
	k, err := ParseKey([]byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, keyBytes)) + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t testing.TB, dir string, k *Key) *Store {
	t.Helper()
	s, err := Open(dir, k)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// row is a request of one row whose values say which one it is.
func row(i int) engine.Feeds {
	return engine.Feeds{"x": tensor.From([]float32{float32(i), 1, 2, 3}, 1, 4)}
}

// drain waits until everything that was offered is written.
func (s *Store) drain(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); s.pending.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the samples were not written within 30 s")
		}
	}
}

func read(t testing.TB, s *Store, model string, k *Key) []Sample {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.Snapshot(model, &b); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()), k)
	if err != nil {
		t.Fatal(err)
	}
	var all []Sample
	for i := range r.Len() {
		x, err := r.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
	}
	return all
}

func first(x Sample) int { return int(tensor.View[float32](x.Feeds["x"])[0]) }

const fast = 1e9 // samples in a second: no limit

func TestCaptureAndRead(t *testing.T) {
	k := testKey(t, 1)
	dir := t.TempDir()
	s := open(t, dir, k)
	s.Offer("m", "1", "infer", row(0), 1) // nobody asked for it
	if _, err := s.Start("m", Settings{MaxSamples: 8, PerSecond: fast}); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		s.Offer("m", "3", "grpc", row(i), 1)
		s.Offer("other", "1", "infer", row(99), 1)
	}
	s.drain(t)
	got := read(t, s, "m", k)
	var seen []int
	for _, x := range got {
		if x.Route != "grpc" || x.Version != "3" || time.Since(x.Time) > time.Minute {
			t.Errorf("sample %+v", x)
		}
		seen = append(seen, first(x))
	}
	if slices.Sort(seen); !slices.Equal(seen, []int{0, 1, 2, 3, 4}) {
		t.Errorf("captured %v", seen)
	}
	st, err := s.Status("m")
	if err != nil || st.Samples != 5 || st.Seen != 5 || st.Routes["grpc"] != 5 || st.State != Running || len(st.Inputs) != 1 || st.Bytes <= 0 {
		t.Errorf("%+v %v", st, err)
	}
	// Nothing on disk is in clear.
	clear := row(3)["x"].Data
	files, _ := filepath.Glob(filepath.Join(dir, "m", "*"))
	if len(files) != 2 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || bytes.Contains(b, clear) {
			t.Errorf("%s holds the values in clear, or cannot be read: %v", filepath.Base(f), err)
		}
	}
}

// Every row seen has the same chance. 40 of 400 rows, 200 times: each row is
// kept 20 times on average with a standard deviation of 4.2, so that tenths of
// the stream, 800 samples each, differ by less than 15 % but once in a million.
func TestReservoirIsUniform(t *testing.T) {
	const rows, kept, times = 400, 40, 200
	counts := make([]int, 10)
	for range times {
		c := newCapture("m", "", manifest{Status: Status{State: Running, Settings: Settings{MaxSamples: kept, MaxBytes: 1 << 40, PerSecond: fast}}})
		slots := make([]int, kept)
		for i := range rows {
			if slot, _, ok := c.choose(row(i), 16, true); ok {
				slots[slot] = i
			}
		}
		for _, i := range slots {
			counts[i*len(counts)/rows]++
		}
	}
	for i, n := range counts {
		if want := kept * times / len(counts); math.Abs(float64(n-want)) > 0.15*float64(want)*1.2 {
			t.Errorf("tenth %d of the stream has %d samples, expected about %d: %v", i, n, want, counts)
		}
	}
}

func TestBatchesAreRows(t *testing.T) {
	k := testKey(t, 1)
	s := open(t, t.TempDir(), k)
	if _, err := s.Start("m", Settings{PerSecond: fast, Redact: Redact{Inputs: []string{"secret"}}}); err != nil {
		t.Fatal(err)
	}
	s.Offer("m", "1", "infer", engine.Feeds{
		"x":      tensor.From([]float32{0, 0, 1, 1, 2, 2}, 3, 2),
		"secret": tensor.From([]int64{7, 8, 9}, 3),
	}, 3)
	s.drain(t)
	got := read(t, s, "m", k)
	if len(got) != 3 {
		t.Fatalf("%d samples of 3 rows", len(got))
	}
	for i, x := range got {
		v := tensor.View[float32](x.Feeds["x"])
		hidden := x.Feeds["secret"]
		if !slices.Equal(x.Feeds["x"].Dims, []int64{1, 2}) || int(v[0]) != i || int(v[1]) != i || !slices.Equal(tensor.View[int64](hidden), []int64{0}) || !slices.Equal(hidden.Dims, []int64{1}) {
			t.Errorf("sample %d: %v %v, secret %v", i, x.Feeds["x"].Dims, v, hidden)
		}
	}
	st, _ := s.Status("m")
	if len(st.Inputs) != 2 || !st.Inputs[0].Redacted || st.Inputs[1].Redacted {
		t.Errorf("inputs: %+v", st.Inputs)
	}
	// An input without the batch makes the request one sample; other inputs than
	// those of the first sample, and texts, are left out.
	s.Offer("m", "1", "infer", engine.Feeds{"x": tensor.From([]float32{5, 5, 6, 6}, 2, 2), "secret": tensor.From([]int64{1}, 1)}, 2)
	s.Offer("m", "2", "infer", row(1), 1)
	s.drain(t)
	if st, _ := s.Status("m"); st.Samples != 4 || st.Skipped != 1 {
		t.Errorf("%+v", st)
	}
}

func TestLimits(t *testing.T) {
	k := testKey(t, 1)
	s := open(t, t.TempDir(), k)
	start := func(model string, set Settings) {
		t.Helper()
		if _, err := s.Start(model, set); err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			s.Offer(model, "1", "infer", row(i), 1)
		}
		s.drain(t)
	}
	start("number", Settings{MaxSamples: 10, PerSecond: fast})
	start("bytes", Settings{MaxSamples: 100, MaxBytes: 2000, PerSecond: fast})
	start("rate", Settings{PerSecond: 5})
	start("share", Settings{Share: 1e-9, PerSecond: fast})
	start("route", Settings{Redact: Redact{Routes: []string{"infer"}}, PerSecond: fast})
	for model, ok := range map[string]func(Status) bool{
		"number": func(st Status) bool { return st.Samples == 10 && st.Seen == 200 },
		"bytes":  func(st Status) bool { return st.Samples > 3 && st.Samples < 15 && st.Bytes <= 2000 && st.Seen == 200 },
		"rate":   func(st Status) bool { return st.Samples >= 5 && st.Samples <= 50 && st.Skipped >= 150 },
		"share":  func(st Status) bool { return st.Samples == 0 && st.Seen == 0 },
		"route":  func(st Status) bool { return st.Samples == 0 && st.Seen == 0 },
	} {
		if st, err := s.Status(model); err != nil || !ok(st) {
			t.Errorf("%s: %+v %v", model, st, err)
		}
	}
	var b bytes.Buffer
	if _, err := s.Snapshot("route", &b); !errors.Is(err, ErrEmpty) {
		t.Errorf("a snapshot of nothing: %v", err)
	}
}

func TestTimeEndsAndDeletes(t *testing.T) {
	s := open(t, t.TempDir(), testKey(t, 1))
	if _, err := s.Start("m", Settings{Seconds: 3600, Keep: 60}); err != nil {
		t.Fatal(err)
	}
	s.Offer("m", "1", "infer", row(1), 1)
	s.drain(t)
	s.sweep(time.Now().Add(2 * time.Hour))
	st, err := s.Status("m")
	if err != nil || st.State != Stopped || st.Reason == "" || s.live.Load() != nil {
		t.Fatalf("after its time: %+v %v", st, err)
	}
	s.Offer("m", "1", "infer", row(2), 1)
	s.sweep(time.Now().Add(2*time.Hour + 2*time.Minute))
	if _, err := s.Status("m"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after it was kept long enough: %v", err)
	}
	if left, _ := os.ReadDir(s.dir); len(left) != 0 {
		t.Errorf("left on disk: %v", left)
	}
}

func TestStartRefused(t *testing.T) {
	s := open(t, t.TempDir(), testKey(t, 1))
	for name, set := range map[string]Settings{
		"share": {Share: 2}, "nan": {Share: math.NaN()}, "negative": {Seconds: -1}, "samples": {MaxSamples: MaxSamples + 1}, "bytes": {MaxBytes: -1},
		"route": {Redact: Redact{Routes: []string{"/x"}}}, "input": {Redact: Redact{Inputs: []string{""}}}, "keep": {Keep: math.Inf(1)},
		"disk": {MaxBytes: MaxBytes + 1},
	} {
		if _, err := s.Start("m", set); !errors.Is(err, ErrSettings) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "..", ".x", "a/b", `a\b`, strings.Repeat("x", 200)} {
		if _, err := s.Start(name, Settings{}); !errors.Is(err, ErrSettings) {
			t.Errorf("model %q: %v", name, err)
		}
	}
	if _, err := s.Start("m", Settings{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start("m", Settings{}); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if _, err := s.Start("m", Settings{Share: 0.5}); !errors.Is(err, ErrExists) {
		t.Errorf("another one: %v", err)
	}
	if _, err := s.Stop("m"); err != nil {
		t.Error(err)
	}
	if _, err := s.Start("m", Settings{}); !errors.Is(err, ErrExists) {
		t.Errorf("over a stopped one: %v", err)
	}
	if err := s.Delete("m"); err != nil {
		t.Error(err)
	}
	if err := s.Delete("m"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	none := open(t, t.TempDir(), nil)
	if _, err := none.Start("m", Settings{}); !errors.Is(err, ErrNoKey) {
		t.Errorf("without a key: %v", err)
	}
}

func TestKeys(t *testing.T) {
	for _, bad := range []string{"", "short", strings.Repeat("z", 64), base64.StdEncoding.EncodeToString(make([]byte, 31)), strings.Repeat("A", 5000)} {
		if _, err := ParseKey([]byte(bad)); !errors.Is(err, ErrKey) || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	hex, err := ParseKey([]byte(strings.Repeat("01", 32)))
	if err != nil || hex.ID() != testKey(t, 1).ID() || hex.ID() == testKey(t, 2).ID() {
		t.Errorf("a key in hexadecimal digits: %v %v", hex, err)
	}
}

// The next process goes on where the last one was, with its key only.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, testKey(t, 1))
	if _, err := s.Start("m", Settings{MaxSamples: 20, PerSecond: fast}); err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		s.Offer("m", "1", "infer", row(i), 1)
	}
	if err := s.Close(); err != nil { // writes what waits
		t.Fatal(err)
	}
	// What a kill leaves.
	for _, junk := range []string{filepath.Join(dir, "m", ".tmp-1"), filepath.Join(dir, ".dead-1")} {
		if err := os.WriteFile(junk, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(dir, "m", logName)
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-3] ^= 1                                                             // what a power failure may leave
	if err := os.WriteFile(log, append(b, b[:len(b)/9]...), 0o600); err != nil { // and a kill, in the middle of a write
		t.Fatal(err)
	}
	again := open(t, dir, testKey(t, 1))
	again.Offer("m", "1", "infer", row(7), 1)
	again.drain(t)
	st, err := again.Status("m")
	if err != nil || st.Seen != 8 || st.Samples != 8 || st.State != Running {
		t.Errorf("%+v %v", st, err)
	}
	if got := read(t, again, "m", testKey(t, 1)); len(got) != 7 {
		t.Errorf("%d samples, one of 8 is damaged", len(got))
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "m", ".*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	other := open(t, dir, testKey(t, 2))
	st, err = other.Status("m")
	if err != nil || st.State != Stopped || !strings.Contains(st.Reason, "key") {
		t.Errorf("with another key: %+v %v", st, err)
	}
	if _, err := other.Snapshot("m", new(bytes.Buffer)); !errors.Is(err, ErrKey) {
		t.Errorf("reading with another key: %v", err)
	}
	if err := other.Delete("m"); err != nil {
		t.Errorf("deleting with another key: %v", err)
	}
}

func TestSnapshotIsWhole(t *testing.T) {
	k := testKey(t, 1)
	s := open(t, t.TempDir(), k)
	if _, err := s.Start("m", Settings{PerSecond: fast}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		s.Offer("m", "1", "infer", row(i), 1)
	}
	s.drain(t)
	var buf bytes.Buffer
	if st, err := s.Snapshot("m", &buf); err != nil || st.Samples != 3 {
		t.Fatal(st, err)
	}
	good := buf.Bytes()
	check := func(b []byte, k *Key) error {
		r, err := NewReader(bytes.NewReader(b), int64(len(b)), k)
		if err != nil {
			return err
		}
		for i := range r.Len() {
			if _, err := r.Sample(i); err != nil {
				return err
			}
		}
		return nil
	}
	if err := check(good, k); err != nil {
		t.Fatal(err)
	}
	for n := range len(good) {
		if err := check(good[:n], k); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut off after %d of %d bytes: %v", n, len(good), err)
		}
	}
	if err := check(good, testKey(t, 2)); !errors.Is(err, ErrKey) {
		t.Errorf("another key: %v", err)
	}
	if err := check(good, nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("no key: %v", err)
	}
	// A changed byte of a sealed part, and a part left out.
	parts := bytes.Clone(good)
	parts[len(parts)-40] ^= 1
	if err := check(parts, k); !errors.Is(err, ErrFormat) {
		t.Errorf("a changed byte: %v", err)
	}
	at := len(Magic)
	at += 4 + int(binary.LittleEndian.Uint32(good[at:])) // behind the manifest
	size := 4 + int(binary.LittleEndian.Uint32(good[at:]))
	if err := check(slices.Concat(good[:at], good[at+size:]), k); !errors.Is(err, ErrFormat) {
		t.Errorf("a sample left out: %v", err)
	}
}

func TestExport(t *testing.T) {
	k := testKey(t, 1)
	s := open(t, t.TempDir(), k)
	if _, err := s.Start("m", Settings{PerSecond: fast}); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 3; n++ {
		ids, mask := make([]int64, n), make([]int64, n)
		for i := range n {
			ids[i], mask[i] = int64(10*n+i), 1
		}
		s.Offer("m", "1", "embed", engine.Feeds{"ids": tensor.From(ids, 1, int64(n)), "mask": tensor.From(mask, 1, int64(n))}, 1)
	}
	s.drain(t)
	var snap, out bytes.Buffer
	if _, err := s.Snapshot("m", &snap); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(snap.Bytes()), int64(snap.Len()), k)
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewExport(r)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := e.WriteTo(&out); err != nil || n != int64(out.Len()) {
		t.Fatal(n, err)
	}
	want := [][]int64{{10, 0, 0}, {20, 21, 0}, {30, 31, 32}}
	if !bytes.Contains(out.Bytes(), tensor.From(slices.Concat(want...), 9).Data) || !bytes.Contains(out.Bytes(), []byte("'shape': (3, 3,)")) {
		t.Error("the .npz lacks the filled up ids")
	}
	// Images of two sizes have no array.
	if _, err := s.Start("img", Settings{PerSecond: fast}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{4, 9} {
		s.Offer("img", "1", "infer", engine.Feeds{"x": tensor.From(make([]float32, n), 1, int64(n))}, 1)
	}
	s.drain(t)
	snap.Reset()
	if _, err := s.Snapshot("img", &snap); err != nil {
		t.Fatal(err)
	}
	if r, err = NewReader(bytes.NewReader(snap.Bytes()), int64(snap.Len()), k); err != nil {
		t.Fatal(err)
	}
	if _, err := NewExport(r); !errors.Is(err, ErrRagged) {
		t.Errorf("ragged: %v", err)
	}
}

// A disk that fails ends the capture, and no request.
func TestDiskFails(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, testKey(t, 1))
	if _, err := s.Start("m", Settings{PerSecond: fast}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "m")); err != nil {
		t.Fatal(err)
	}
	s.Offer("m", "1", "infer", row(1), 1)
	s.drain(t)
	if st, err := s.Status("m"); err != nil || st.State != Stopped || !strings.Contains(st.Reason, "could not be written") || strings.Contains(st.Reason, dir) {
		t.Errorf("%+v %v", st, err)
	}
	if err := s.Delete("m"); err != nil {
		t.Error(err)
	}
}

func TestConcurrent(t *testing.T) {
	s := open(t, t.TempDir(), testKey(t, 1))
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				model := fmt.Sprintf("m%d", i%3)
				s.Offer(model, "1", "infer", row(i), 1)
				switch (i + g) % 50 {
				case 1:
					_, _ = s.Start(model, Settings{MaxSamples: 5, PerSecond: fast})
				case 20:
					_, _ = s.Stop(model)
				case 30:
					_, _ = s.Snapshot(model, new(bytes.Buffer))
				case 40:
					_ = s.Delete(model)
				case 45:
					s.sweep(time.Now())
					s.List()
				}
			}
		})
	}
	wg.Wait()
}

func FuzzRecord(f *testing.F) {
	in := []Input{{Name: "x", Datatype: "FP32"}, {Name: "y", Datatype: "INT64", Redacted: true}}
	b, err := encodeRow(recordHeader{Time: time.Unix(1, 0), Route: "infer", Version: "1"}, in, engine.Feeds{"x": tensor.From([]float32{1, 2}, 1, 2), "y": tensor.From([]int64{3}, 1)}, 0, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add([]byte("\x02\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		for name, x := range s.Feeds {
			if err := x.Check(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	k := testKey(f, 1)
	s := open(f, f.TempDir(), k)
	if _, err := s.Start("m", Settings{PerSecond: fast}); err != nil {
		f.Fatal(err)
	}
	s.Offer("m", "1", "infer", row(1), 1)
	s.drain(f)
	var b bytes.Buffer
	if _, err := s.Snapshot("m", &b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(Magic))
	f.Add([]byte(Magic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b), int64(len(b)), k)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrKey) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		for i := range r.Len() {
			_, _ = r.Sample(i)
		}
	})
}

// BenchmarkOffer is what a request pays: without a capture, with one whose
// reservoir is full and rarely takes, and for a row that is taken.
func BenchmarkOffer(b *testing.B) {
	feeds := engine.Feeds{"input_ids": tensor.From(make([]int64, 128), 1, 128), "attention_mask": tensor.From(make([]int64, 128), 1, 128)}
	for _, c := range []struct {
		name string
		set  *Settings
		seen int64
	}{{"off", nil, 0}, {"rarely", &Settings{PerSecond: fast}, 1 << 40}, {"taken", &Settings{PerSecond: fast, MaxSamples: MaxSamples}, 0}} {
		b.Run(c.name, func(b *testing.B) {
			s := open(b, b.TempDir(), testKey(b, 1))
			if c.set != nil {
				if _, err := s.Start("m", *c.set); err != nil {
					b.Fatal(err)
				}
				if c.seen > 0 {
					m := s.all["m"]
					m.st.Seen, m.filled = c.seen, m.st.Settings.MaxSamples
				}
			}
			for b.Loop() {
				s.Offer("m", "1", "infer", feeds, 1)
			}
		})
	}
}

// BenchmarkKeep is what the writer pays for one sample of 2 KiB, in batches of 25.
func BenchmarkKeep(b *testing.B) {
	s := open(b, b.TempDir(), testKey(b, 1))
	if _, err := s.Start("m", Settings{PerSecond: fast}); err != nil {
		b.Fatal(err)
	}
	c := s.all["m"]
	x := make([]byte, 2048)
	const batch = 25
	var xs []taken
	for i := 0; b.Loop(); i++ {
		if xs = append(xs, taken{c, i % 512, x}); len(xs) == batch {
			c.keep(xs)
			xs = xs[:0]
		}
	}
}

// Replaced samples leave the disk, and none that is kept is lost by it.
func TestCompact(t *testing.T) {
	k := testKey(t, 1)
	dir := t.TempDir()
	s := open(t, dir, k)
	if _, err := s.Start("m", Settings{MaxSamples: 10, PerSecond: fast}); err != nil {
		t.Fatal(err)
	}
	c := s.all["m"]
	const size = 4096 // numbers of a row
	for i := range 1000 {
		v := make([]float32, size)
		v[0] = float32(i)
		b, err := encodeRow(recordHeader{Time: time.Now()}, []Input{{Name: "x", Datatype: "FP32"}}, engine.Feeds{"x": tensor.From(v, 1, size)}, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		c.keep([]taken{{c, i % 10, b}})
	}
	info, err := os.Stat(filepath.Join(dir, "m", logName))
	if err != nil || info.Size() > 2*compactFrom+10*4*size {
		t.Errorf("the log has %d bytes, %v", info.Size(), err)
	}
	check := func(s *Store) {
		t.Helper()
		var seen []int
		for _, x := range read(t, s, "m", k) {
			seen = append(seen, first(x))
		}
		slices.Sort(seen)
		if len(seen) != 10 || seen[0] != 990 || seen[9] != 999 {
			t.Errorf("kept %v, expected 990 to 999", seen)
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(open(t, dir, k))
}
