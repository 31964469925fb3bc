module shop.example/e2e

go 1.26.0
