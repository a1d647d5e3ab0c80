//go:build !linux

package pipeline

// dropMapped does nothing on this system.
func dropMapped(string) {}
