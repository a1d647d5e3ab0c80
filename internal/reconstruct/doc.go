// Package reconstruct learns how the weights of a quantized model are rounded, one block
// after the other, so that each block gives what the float model's gives: block
// reconstruction (BRECQ, Li et al. 2021, arXiv:2102.05426) with the relaxation of
// AdaRound (Nagel et al. 2020, arXiv:2004.10568).
//
// Segments cuts a graph into blocks, Derive writes the graph of a block's derivatives,
// which an engine runs, and Learn is the optimizer. Where samples come from and how a
// block imitates its quantized form is left to the caller.
package reconstruct
