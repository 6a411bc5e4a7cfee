package kcpsmux

import (
	"testing"

	"turbotunnel/common/engine/enginetest"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func TestEarly(t *testing.T) { enginetest.RunEarly(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }
