"""What people read: the `report` of figures, tables and pictures, `charts` as SVG, `cells` of CSV files."""
