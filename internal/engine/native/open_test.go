package native

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
)

// bertNative is made by make bench.
const bertNative = "../../../.deps/bench/bert-native.onnx"

// BenchmarkOpen is the time to open BERT-base in the native form, and the
// private memory that a session then holds.
func BenchmarkOpen(b *testing.B) {
	e := newEngine(b)
	if _, err := os.Stat(bertNative); err != nil {
		b.Skip("needs .deps/bench/bert-native.onnx (make bench)")
	}
	packed := filepath.Join(b.TempDir(), "packed.onnx")
	if _, err := e.Pack(context.Background(), bertNative, packed); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name, path, prepared string
		e                    engine.Engine
	}{
		{"bodies", bertNative, "", e.Engine}, {"lowered", bertNative, "", e}, {"packed", packed, "", e.Engine},
		{"prepared", bertNative, filepath.Join(b.TempDir(), "prepared"), e},
	} {
		b.Run(c.name, func(b *testing.B) {
			var private int64
			open := func() engine.Session {
				s, err := c.e.OpenFile(context.Background(), c.path, engine.Options{Prepared: c.prepared})
				if err != nil {
					b.Fatal(err)
				}
				return s
			}
			if err := open().Close(); err != nil { // the first one prepares
				b.Fatal(err)
			}
			for b.Loop() {
				before := privateKB(b)
				s := open()
				b.StopTimer()
				private = privateKB(b) - before
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(private)/1024, "private-MiB")
		})
	}
}

var privateRE = regexp.MustCompile(`Private_(?:Clean|Dirty): +(\d+) kB`)

func privateKB(t testing.TB) (kb int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Skip(err)
	}
	for _, m := range privateRE.FindAllStringSubmatch(string(b), -1) {
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		kb += n
	}
	return kb
}
