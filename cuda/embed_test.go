//go:build cuda

package cuda

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// embedTable makes a table of random values, and what its rows are in float.
func embedTable(t *testing.T, r *rand.Rand, bits, count, dim int, zeros bool) (EmbedTable, []float32) {
	t.Helper()
	table, rows := EmbedTable{Bits: bits, Count: int64(count)}, make([]float32, count*dim)
	switch bits {
	case 32:
		copy(rows, normal(r, len(rows)))
		table.Rows = in(t, rows)
	case 8:
		q, scale, zero := bytes8(r, len(rows)), make([]float32, count), make([]int32, count)
		for i := range scale {
			scale[i] = r.Float32()
			if zeros {
				zero[i] = int32(r.IntN(256) - 128)
			}
		}
		for i := range rows {
			rows[i] = float32(int32(q[i])-zero[i/dim]) * scale[i/dim]
		}
		table.Rows, table.Scale = in(t, q), in(t, scale)
		if zeros {
			table.Zero = in(t, zero)
		}
	case 4:
		block := 16
		for dim%(2*block) == 0 && block < 64 {
			block *= 2
		}
		q, scale := make([]uint8, len(rows)/2), make([]float32, len(rows)/block)
		for i := range q {
			q[i] = uint8(r.UintN(256))
		}
		for i := range scale {
			scale[i] = r.Float32() - 0.5
		}
		for i := range rows {
			rows[i] = float32(int(q[i/2]>>(i%2*4)&15)-8) * scale[i/block]
		}
		table.Rows, table.Scale, table.Block = in(t, q), in(t, scale), block
	}
	return table, rows
}

func TestEmbed(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range []struct {
			tokens, dim int
			bits        []int
			fault       bool
		}{
			{1, 1, []int{32}, false}, {5, 7, []int{8, 32}, false}, {6, 48, []int{4, 8, 32}, false}, {4, 768, []int{8, 32, 4}, false}, {9, 1056, []int{4}, false}, {4, 64, []int{32, 8}, true}, {3, 13, []int{32, 32, 8}, true},
		} {
			name := fmt.Sprintf("%dx%d %v", c.tokens, c.dim, c.bits)
			r := random(uint64(c.tokens * c.dim))
			want := make([]float32, c.tokens*c.dim)
			var tables []EmbedTable
			for i, bits := range c.bits {
				count := 3 + r.IntN(20)
				table, rows := embedTable(t, r, bits, count, c.dim, i%2 == 0)
				period := c.tokens
				if i > 0 {
					period = max(c.tokens/2, 1)
					table.Period = int64(period)
				}
				ids := make([]int64, period)
				for j := range ids {
					ids[j] = int64(r.IntN(2*count) - count)
				}
				if c.fault && i == len(c.bits)-1 {
					ids[0] = []int64{int64(count), -int64(count) - 1, 1 << 40}[c.tokens%3]
				}
				table.IDs = in(t, ids)
				tables = append(tables, table)
				for token := range c.tokens {
					id := int(ids[token%period])
					if id < 0 {
						id += count
					}
					if id < 0 || id >= count {
						id = 0
					}
					for d := range c.dim {
						if v := rows[id*c.dim+d]; i == 0 {
							want[token*c.dim+d] = v
						} else {
							want[token*c.dim+d] += v
						}
					}
				}
			}
			y, fault := device[float32](t, c.tokens*c.dim), in(t, []int32{0})
			ok(t, Embed(tables, int64(c.tokens), int64(c.dim), y, fault, 0))
			equal(t, name, out[float32](t, y, c.tokens*c.dim), want)
			if got := out[int32](t, fault, 1)[0] != 0; got != c.fault {
				t.Errorf("%s: fault is %v", name, got)
			}
		}
	})
}

// Rows that start at no multiple of a vector are read one value at a time.
func TestEmbedUnaligned(t *testing.T) {
	schedules(t, func(t *testing.T) {
		const dim = 32
		r := random(5)
		for _, bits := range []int{32, 8, 4} {
			table, rows := embedTable(t, r, bits, 4, dim, true)
			size := int64(4*dim) * int64(bits) / 8
			raw := append(make([]byte, bits/8|1), out[byte](t, table.Rows, int(size))...)
			if bits == 32 {
				raw = append(make([]byte, 4), raw[5:]...)
			}
			table.Rows = in(t, raw).Add(int64(len(raw)) - size)
			table.IDs = in(t, []int64{2, -1})
			y, fault := device[float32](t, 2*dim+1), in(t, []int32{0})
			ok(t, Embed([]EmbedTable{table}, 2, dim, y.Add(4), fault, 0))
			equal(t, fmt.Sprint(bits, " bits"), out[float32](t, y.Add(4), 2*dim), append(append([]float32(nil), rows[2*dim:3*dim]...), rows[3*dim:]...))
		}
	})
}

func TestEmbedRefusesArguments(t *testing.T) {
	x := device[float32](t, 64)
	for name, table := range map[string]EmbedTable{
		"no rows":       {Bits: 32, Count: 1, IDs: x},
		"no ids":        {Rows: x, Bits: 32, Count: 1},
		"empty":         {Rows: x, Bits: 32, IDs: x},
		"bits":          {Rows: x, Bits: 16, Count: 1, IDs: x},
		"no scale":      {Rows: x, Bits: 8, Count: 1, IDs: x},
		"block":         {Rows: x, Bits: 4, Count: 1, IDs: x, Scale: x, Block: 24},
		"ragged blocks": {Rows: x, Bits: 4, Count: 1, IDs: x, Scale: x, Block: 32},
		"period":        {Rows: x, Bits: 32, Count: 1, IDs: x, Period: -1},
	} {
		if Embed([]EmbedTable{table}, 1, 16, x, x, 0) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	good := EmbedTable{Rows: x, Bits: 32, Count: 1, IDs: x}
	if Embed(nil, 1, 8, x, x, 0) == nil || Embed(make([]EmbedTable, 4), 1, 8, x, x, 0) == nil || Embed([]EmbedTable{good}, 1, 8, x, 0, 0) == nil {
		t.Error("accepted")
	}
}
