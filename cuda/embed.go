//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// MaxEmbedTables is how many tables one Embed adds up.
const MaxEmbedTables = 3

// EmbedTable is one table of embeddings and the ids that select its rows.
type EmbedTable struct {
	Rows  Ptr   // [Count, dim] by Bits: 32 f32, 8 s8, 4 packed as QuantizeBlocksS4 writes it
	Bits  int   //
	Count int64 // rows
	Scale Ptr   // f32: Bits 8 [Count], Bits 4 [Count, dim / Block]
	Zero  Ptr   // s32 [Count], the s8 zero points of Bits 8; 0: all zero
	Block int   // of Bits 4: 16 to 256, a power of two that divides dim
	IDs   Ptr   // s64; token i reads IDs[i % Period]
	// Period is the number of ids; 0 means one for each token.
	Period int64
}

// Embed writes the sum of the tables' rows to y [tokens, dim] f32. Negative ids
// count from the end; an id outside the table sets *fault (s32) to 1 and reads
// row 0.
func Embed(tables []EmbedTable, tokens, dim int64, y, fault Ptr, s Stream) error {
	if len(tables) == 0 || len(tables) > MaxEmbedTables {
		return fmt.Errorf("embed: %w: %d tables, want 1 to %d", ErrArgument, len(tables), MaxEmbedTables)
	}
	var c [MaxEmbedTables]C.fb_embed_table
	for i, t := range tables {
		c[i] = C.fb_embed_table{
			rows: unsafe.Pointer(at[byte](t.Rows)), scale: at[C.float](t.Scale), ids: at[C.int64_t](t.IDs), count: C.int64_t(t.Count), ids_period: C.int64_t(t.Period),
			bits: C.int(t.Bits), block: C.int(t.Block), zero: at[C.int32_t](t.Zero),
		}
	}
	return check("embed", C.fb_embed(&c[0], C.int(len(tables)), C.int64_t(tokens), C.int64_t(dim), at[C.float](y), at[C.int32_t](fault), stream(s)))
}
