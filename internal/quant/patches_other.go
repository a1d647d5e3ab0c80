//go:build !cgo || !amd64

package quant

// addGrams is addGramsGo: without cgo on amd64 only that is built.
func addGrams(sum, rows []float32, n, groups, k, from, to int) {
	addGramsGo(sum, rows, n, groups, k, from, to)
}
