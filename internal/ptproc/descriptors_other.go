//go:build !unix

package ptproc

// DescriptorLimit is 0 where there is no such limit.
func DescriptorLimit() uint64 { return 0 }
