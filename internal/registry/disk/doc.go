// Package disk asks the operating system about the disk under a directory.
package disk
