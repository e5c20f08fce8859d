"""Laws: tables, fits, forecasts, figures. Imports neither scaling nor sweeps."""
