module tokensvc-bench-go

go 1.19
