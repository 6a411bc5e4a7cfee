//go:build race

package deploy

func init() { buildFlags = append(buildFlags, "-race") }
