package quant

import (
	"testing"
)

// TestHalves: every code of a block is where unpacked's operators read it.
func TestHalves(t *testing.T) {
	codes := make([]byte, 3*Int4Block/2)
	for i := range codes {
		codes[i] = byte(37*i + 11)
	}
	got := halves(codes)
	for b := range 3 {
		for i := range Int4Block {
			at := b * Int4Block
			want := codes[(at+i)/2] >> (4 * (i % 2)) & 15
			// The low bits of all bytes of the block, then the high ones.
			have := got[b*Int4Block/2+i%(Int4Block/2)]
			if have>>(4*(i/(Int4Block/2)))&15 != want {
				t.Fatalf("block %d, code %d is not %d", b, i, want)
			}
		}
	}
}
