package onnx

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
)

// The bars for a model of BERT-base's size (438 MB). Open maps and splits, so
// it has to hold on a busy machine too; Save is bound by the disk and only
// reported.
const (
	openBar   = 50 * time.Millisecond
	memoryBar = 50 << 20
	saveBar   = 1500 * time.Millisecond
)

// bertBase returns a model with BERT-base's tensors, every one of which aliases
// one read-only map of zeros, so that building it takes no memory.
func bertBase(tb testing.TB) *pb.ModelProto {
	tb.Helper()
	const hidden, inner, words, layers = 768, 3072, 30522, 12
	zeros, err := unix.Mmap(-1, 0, words*hidden*4, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Munmap(zeros) })
	m := small()
	m.Graph.Initializer = nil
	add := func(name string, dims ...int64) {
		n := int64(4)
		for _, d := range dims {
			n *= d
		}
		m.Graph.Initializer = append(m.Graph.Initializer, &pb.TensorProto{Name: proto.String(name), Dims: dims, DataType: proto.Int32(1), RawData: zeros[:n]})
	}
	add("words", words, hidden)
	add("positions", 512, hidden)
	add("types", 2, hidden)
	add("w", hidden, hidden)
	for l := range layers {
		for _, part := range []string{"q", "k", "v", "o"} {
			add(fmt.Sprint(l, part), hidden, hidden)
			add(fmt.Sprint(l, part, "b"), hidden)
		}
		add(fmt.Sprint(l, "up"), hidden, inner)
		add(fmt.Sprint(l, "upb"), inner)
		add(fmt.Sprint(l, "down"), inner, hidden)
		for _, v := range []string{"downb", "ln1", "ln1b", "ln2", "ln2b"} {
			add(fmt.Sprint(l, v), hidden)
		}
		for i := range 50 { // about as many nodes as an exporter leaves
			m.Graph.Node = append(m.Graph.Node, &pb.NodeProto{OpType: proto.String("Add"), Name: proto.String(fmt.Sprintf("/encoder/layer.%d/node_%d", l, i)),
				Input: []string{"w", "w"}, Output: []string{fmt.Sprintf("/encoder/layer.%d/out_%d", l, i)}})
		}
	}
	return m
}

// anonymous returns the process's RssAnon in bytes, 0 where /proc has none.
func anonymous() int64 {
	b, _ := os.ReadFile("/proc/self/status")
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		if v, ok := strings.CutPrefix(s.Text(), "RssAnon:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// TestBERTSize: a 438 MB model opens at once and costs nothing, inline and with
// external data.
func TestBERTSize(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 900 MB")
	}
	dir := t.TempDir()
	m := bertBase(t)
	for _, external := range []bool{false, true} {
		from, to := filepath.Join(dir, "from.onnx"), filepath.Join(dir, "to.onnx")
		if err := Save(from, m, SaveOptions{External: external}); err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		rss := anonymous()
		open := time.Hour
		var f *File
		for range 5 {
			if f != nil {
				f.Close()
			}
			start := time.Now()
			var err error
			if f, err = Open(from); err != nil {
				t.Fatal(err)
			}
			open = min(open, time.Since(start))
		}
		if f.Bytes < 430e6 {
			t.Errorf("%d bytes", f.Bytes)
		}
		start := time.Now()
		if err := Save(to, f.Proto, SaveOptions{External: external}); err != nil {
			t.Fatal(err)
		}
		save := time.Since(start)
		runtime.ReadMemStats(&after)
		// Five opens and a save: all they ever allocated, freed or not, and
		// what is resident now.
		allocated, resident := after.TotalAlloc-before.TotalAlloc, anonymous()-rss
		t.Logf("external=%v: open %v (bar %v), save %v (bar %v), allocated %d KiB, resident %+d KiB (bar %d MiB)",
			external, open, openBar, save, saveBar, allocated>>10, resident>>10, memoryBar>>20)
		if open > openBar || allocated > memoryBar || resident > memoryBar {
			t.Errorf("external=%v: past a bar", external)
		}
		f.Close()
	}
}

func BenchmarkBERTSize(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "m.onnx")
	m := bertBase(b)
	if err := Save(path, m, SaveOptions{}); err != nil {
		b.Fatal(err)
	}
	b.Run("Open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f, err := Open(path)
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
	})
	b.Run("Save", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := Save(filepath.Join(dir, "copy.onnx"), m, SaveOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Encode", func(b *testing.B) { // without the disk
		b.ReportAllocs()
		for b.Loop() {
			if err := Write(io.Discard, m); err != nil {
				b.Fatal(err)
			}
		}
	})
}
