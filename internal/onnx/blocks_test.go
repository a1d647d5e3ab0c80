package onnx

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// written keeps what came and how long each piece was.
type written struct {
	all    bytes.Buffer
	pieces []int
	fail   error
}

func (w *written) Write(b []byte) (int, error) {
	if w.fail != nil {
		return 0, w.fail
	}
	w.pieces = append(w.pieces, len(b))
	return w.all.Write(b)
}

func TestBlocks(t *testing.T) {
	source := rand.NewChaCha8([32]byte{1})
	random := rand.New(source)
	for range 20 {
		var to written
		var want bytes.Buffer
		w := newBlocks(&to)
		for range 30 {
			b := make([]byte, [...]int{0, 1, 4096, block - 1, block, block + 1, 3*block + 5, random.IntN(block)}[random.IntN(8)])
			_, _ = source.Read(b) // never fails
			want.Write(b)
			if n, err := w.Write(b); n != len(b) || err != nil {
				t.Fatalf("Write of %d bytes: %d, %v", len(b), n, err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(to.all.Bytes(), want.Bytes()) {
			t.Fatal("not the bytes that were written")
		}
		for _, n := range to.pieces[:len(to.pieces)-1] {
			if n == 0 || n%block != 0 {
				t.Fatalf("a piece of %d bytes before the last", n)
			}
		}
	}
	full := errors.New("disk full")
	w := newBlocks(&written{fail: full})
	if _, err := w.Write(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, block)); !errors.Is(err, full) {
		t.Fatalf("error %v", err)
	}
}
