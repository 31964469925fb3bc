module shop.example/tools/lint

go 1.26.0
