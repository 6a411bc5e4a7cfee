// flush.go declares a function whose body the linker finds elsewhere. The compiler
// asks for an assembly file in such a package; this one is empty.
